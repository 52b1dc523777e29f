"""The native door: `/v1/models` in JSON."""
