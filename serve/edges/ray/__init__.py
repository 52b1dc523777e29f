"""The Ray Serve edge: deployment, launcher, HAProxy, and the environment of Ray. Only `deployment.py` imports ray."""
