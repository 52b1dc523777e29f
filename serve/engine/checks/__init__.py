"""Checks of a model before it serves: every row bucket runs once (`warmup.py`), and answers agree (`parity.py`).

A check that fails raises StartupError, and the replica does not become ready.
"""
