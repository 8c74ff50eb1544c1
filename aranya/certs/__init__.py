"""Keys, certificates and TLS contexts; knows the API server only as ``Kubernetes``."""
