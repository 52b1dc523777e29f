"""How many bytes a model needs, and how many the device has free."""
