"""How the controller speaks to the API server."""
