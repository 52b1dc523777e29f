"""A synthetic prior over small classification tables.

TabPFN learns Bayesian inference under the tables that it is trained on, so this folder decides which tables the demo
checkpoint expects. A table is drawn in three steps, each independent of the others:

1. a *mechanism* (`mechanisms.py`) draws features and class scores that belong together;
2. *observation* (`observation.py`) spoils the features as measurements do: monotone warps, heavy tails, rounding,
   categories without order, irrelevant columns, missing values;
3. *labelling* (`labelling.py`) turns scores into classes: noise, class imbalance, permuted class numbers.

Three more mechanisms draw tables that are already observed and labelled: a log of events (`events.py`), columns that
look back on a stream of events (`streams.py`), and payments (`payments/`).

What is always true:
- every draw comes from the generator that is passed in, so a seed fixes a table. The shipped checkpoint was trained on
  these draws: a call of the generator that is added, removed or moved changes them, and the tests compare fixed values;
- features are float32 `[rows, features]` with NaN for a missing cell, labels are int64 `[rows]`;
- all parameters are drawn. Nothing is taken from `training/cards.py`, whose tables judge the checkpoint.
"""

from training.prior.table import BASIC_WEIGHTS, FINAL_WEIGHTS, FULL_WEIGHTS, MAX_CLASSES, Table, sample_table

__all__ = ["BASIC_WEIGHTS", "FINAL_WEIGHTS", "FULL_WEIGHTS", "MAX_CLASSES", "Table", "sample_table"]
