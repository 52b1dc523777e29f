"""Trains the demo checkpoint and makes the demo model that is served with it.

`prior/` draws the tables that the network is trained on, `pretrain.py` is the training loop, `checkpoint.py` the
network and its file. `cards.py` simulates card transactions, on which `evaluate.py` judges a checkpoint and from which
`demo.py` makes the demo model. Nothing of the server imports this folder.
"""
