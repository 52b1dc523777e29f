"""How a forward pass runs on a device: recorded graphs, threads, and number formats."""
