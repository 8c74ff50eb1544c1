"""SPDY/3.1 as Kubernetes uses it, server side: streams without flow control."""
