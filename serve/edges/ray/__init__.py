"""The Ray Serve edge: the deployment, its launcher, HAProxy, and the environment of Ray.

Only `deployment.py` and `launcher.py` import ray, and only after `environment.py` has set what Ray reads at its import.
"""
