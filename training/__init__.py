"""The small open checkpoint: prior, training loop, evaluation; and the demo model that is served with it."""
