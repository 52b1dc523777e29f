"""Makes the demo model `fraud` inside the package: `python -m training.demo --checkpoint PATH`.

The context is drawn from the first 60 % of a simulated history (`training/cards.py`): the newest frauds, and random
legitimate rows. The classes are far from their true shares, so the manifest states the true shares, and the server
corrects its answers to them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa

from benchmarks.command_line import command_parser, existing_file
from serve.core import ColumnKind, Scalar, Task
from serve.store import write_model
from serve.store.folder import EMBEDDED
from training.cards import CATEGORICAL, FEATURES, NUMERIC, TARGET, sample_context, simulate, split_by_time

SEED = 7
NUM_CUSTOMERS = 4_000
CONTEXT_ROWS, FRAUD_SHARE = 1_200, 0.25
CHECKPOINT = EMBEDDED / "checkpoints" / "demo-v3.5.safetensors"

DESCRIPTIONS = {
    "amount": "in the account's currency",
    "amount_to_usual": "amount over what this customer usually spends at such a merchant",
    "hour": "hour of the day with decimals, customer's clock",
    "weekday": "0 is Monday",
    "minutes_since_last": "since the customer's last transaction; null for the first",
    "count_1h": "the customer's transactions in the last hour",
    "count_24h": "the customer's transactions in the last day",
    "amount_24h": "the customer's spending in the last day",
    "distance_km": "terminal from home; null online",
    "terminal_fraud_rate_7d": "share of fraud at the terminal, in the week whose reports are in; null if unseen",
    "terminal_count_24h": "the terminal's transactions in the last day",
    "customer_age_years": "",
    "account_age_days": "",
    "merchant_category": "",
    "country": "of the merchant, ISO 3166",
    "channel": "chip, contactless, magstripe or online",
    "card_type": "credit or debit",
    "new_device": "yes or no for an online purchase; null at a terminal",
}


def make_demo(checkpoint: Path, repository: Path = EMBEDDED) -> Path:
    """Write the folder of the demo model into a repository and return its path."""
    rows = simulate(SEED, num_customers=NUM_CUSTOMERS)
    history, later = split_by_time(rows, 0.6)
    context = sample_context(history, CONTEXT_ROWS, FRAUD_SHARE, SEED)
    fraud_rate = round(float(history[TARGET].mean()), 5)
    return write_model(
        repository,
        pa.Table.from_pandas(context[[*FEATURES, TARGET]], preserve_index=False),
        checkpoint,
        {"name": "tabpfn-serve-demo-v3.5", "licence": "Apache-2.0"},
        name="fraud",
        version="1",
        task=Task.CLASSIFICATION,
        description="Demo: is this card transaction fraud? Class 1 is fraud. Simulated data, see training/cards.py.",
        columns=[
            {"name": name, "kind": kind, "description": DESCRIPTIONS[name]}
            for names, kind in ((NUMERIC, ColumnKind.NUMBER), (CATEGORICAL, ColumnKind.CATEGORY))
            for name in names
        ],
        target=TARGET,
        class_priors={"0": round(1 - fraud_rate, 5), "1": fraud_rate},
        example=record(later[later[TARGET] == 1].iloc[0]),
    )


def record(row: pd.Series) -> dict[str, Scalar]:
    """One transaction as a caller sends it, with None for a missing cell."""
    return {name: None if pd.isna(row[name]) else row[name] for name in FEATURES}


def main() -> None:
    """The command."""
    parser = command_parser("training.demo", __doc__)
    parser.add_argument(
        "--checkpoint", type=existing_file, metavar="FILE", help="a checkpoint to copy into the package first"
    )
    arguments = parser.parse_args()
    if arguments.checkpoint is not None:
        CHECKPOINT.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(arguments.checkpoint, CHECKPOINT)
    print(f"wrote {make_demo(CHECKPOINT)}")


if __name__ == "__main__":
    main()
