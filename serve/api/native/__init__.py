"""The native door: `/v1/models` in JSON, with errors as `application/problem+json`."""
