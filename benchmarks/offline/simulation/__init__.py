"""Batching policies under a virtual clock: what they do with the same load on the same device."""
