"""How a forward pass runs on a device: recorded per shape (`recorded.py`), by threads (`split_rows.py`), in a number
format (`precision.py`).

Nothing here changes an answer: a recorded or divided pass computes what the plain call computes.
"""
