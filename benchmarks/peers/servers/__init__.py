"""One small server per peer, each as its framework's documentation recommends. It runs in that peer's own environment.

All take `POST /predict` with {"records": [{...}, ...]} and answer {"probabilities": [[...], ...]}. Where a framework
shapes its answers itself, they keep that shape.
"""
