"""What a replica reports about itself: events, Prometheus and CloudWatch metrics, the GPU, the event loop."""
