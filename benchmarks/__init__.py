"""Measurements: `offline` runs the engine in one process, `online` and `peers` load a running server, `simulation` runs
batching policies under a virtual clock. None of them imports Ray."""
