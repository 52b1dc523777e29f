"""One replica without HTTP: its parts, its models, its predictor and its lifecycle."""
