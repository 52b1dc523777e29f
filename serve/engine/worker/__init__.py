"""The engine in a process of its own: the client in the replica, and the server in the worker."""
