"""The records that the systems are asked, and the answers that they must give."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from training.cards import FEATURES, simulate

SEED = 1_001
NUM_FRAUD, NUM_HONEST = 48, 80
"""More fraud than in reality, so that answers differ and an answer given to the wrong caller is seen."""

Record = dict[str, Any]


def draw_transactions() -> list[Record]:
    """Card transactions that the demo model has not seen, in an order that is independent of which are fraud."""
    rows = simulate(SEED, num_customers=500)
    parts = [
        rows[rows["is_fraud"] == is_fraud].sample(most, random_state=SEED)
        for is_fraud, most in ((1, NUM_FRAUD), (0, NUM_HONEST))
    ]
    shuffled = pd.concat(parts).sample(frac=1, random_state=SEED)
    records: list[Record] = json.loads(shuffled[list(FEATURES)].to_json(orient="records"))
    return records


def expected_answers(records: Sequence[Record], num_threads: int) -> list[list[float]]:
    """The probabilities of each record alone, by tabpfn's cached predict in float32."""
    from benchmarks.peers.models import load

    predict = load("tabpfn-float32", num_threads)
    return [predict([record])[0] for record in records]


def main() -> None:
    """Print records and answers as JSON. Run as a process of its own, so that the load generator holds no torch."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    given = parser.parse_args()
    records = draw_transactions()
    print(json.dumps({"records": records, "answers": expected_answers(records, given.threads)}))


if __name__ == "__main__":
    main()
