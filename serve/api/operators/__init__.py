"""Routes for operators: health, metrics and the documentation page. Each file is one `RouteGroup`."""
