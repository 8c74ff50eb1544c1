"""Questions that the real thing and its double must answer alike."""
