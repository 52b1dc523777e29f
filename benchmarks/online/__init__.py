"""Open-loop load over HTTP against a running server. Knows the server only by its documented JSON."""
