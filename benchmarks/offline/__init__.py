"""The engine alone, in this process: no server, no queue."""
