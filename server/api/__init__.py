"""The HTTP API: thin controllers over `server.services`."""
