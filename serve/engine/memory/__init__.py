"""Memory of a device: `sizes.py` predicts the bytes of a model, `probes.py` reads the bytes that are free.

A model that would not fit is refused before its fit allocates anything. Nothing here allocates on a device.
"""
