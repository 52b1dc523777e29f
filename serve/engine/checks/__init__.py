"""Checks that a model passes before it serves: warm-up of every row bucket, and parity of its answers."""
