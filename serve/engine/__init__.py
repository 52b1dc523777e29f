"""Runs models on one device: torch and tabpfn. Knows nothing of queues or HTTP. Import the modules by name."""
