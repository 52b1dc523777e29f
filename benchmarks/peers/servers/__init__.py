"""One small server per peer, each as its framework's documentation recommends. Run in that peer's own environment.

All take `POST /predict` with {"records": [{...}, ...]} and answer {"probabilities": [[...], ...]}; where a framework's
own shape of answers is another, that one.
"""
