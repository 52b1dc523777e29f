"""Routes for operators: health, metrics and the documentation page."""
