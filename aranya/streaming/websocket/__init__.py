"""RFC 6455, server side, and the ``channel.k8s.io`` protocols inside it."""
