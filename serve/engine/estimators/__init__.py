"""Fitted estimators from pickles: a sandboxed child opens one and writes it anew, and the engine serves it unchanged.

The child is `sandbox.py`, then `importer.py`; the store starts it. It writes two files (`file.py`), which the engine's
worker process reads again (`fit.py`).

What is always true:
- nothing else in the server unpickles anything, and the replica's own process never does;
- every pickle is opened by the unpickler of `unpickling.py`, which admits only the parts of a fitted estimator.
"""
