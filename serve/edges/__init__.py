"""The ways in which requests reach a replica: sockets, uvicorn, and Ray Serve with HAProxy.

An edge starts a replica and stops it, by the one lifecycle of `replica/lifecycle.py`. Nothing below imports an edge.
"""
