"""Measurements: `offline` runs the engine in one process, `online` loads a running server. Neither imports Ray."""
