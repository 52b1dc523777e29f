"""Fitted estimators from pickles: opened in a sandbox, written again, and served as they are."""
