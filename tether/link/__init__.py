"""Twisted around the wire: links, channels, liveness, and the WebSocket beneath."""
