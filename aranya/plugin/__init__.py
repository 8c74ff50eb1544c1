"""``kubectl aranya``: a command-line client; uses the caller's own kubeconfig and RBAC, no reactor."""
