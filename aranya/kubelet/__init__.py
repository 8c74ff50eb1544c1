"""The front door: one kubelet-compatible HTTPS endpoint per device, which the API server dials."""
