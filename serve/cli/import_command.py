"""`tabpfn-serve import`: makes a model folder from a fitted estimator that was saved as a pickle."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `tabpfn-serve`."""
    parser = commands.add_parser("import", help="make a model folder from a pickled, fitted TabPFN estimator")
    parser.add_argument("file", type=Path, help="a pickle, a joblib file or a .tabpfn_fit archive")
    parser.add_argument(
        "--sha256", required=True, help="SHA-256 of the file, as its maker states it: opening a pickle can run code"
    )
    parser.add_argument("--name", required=True, help="name of the model")
    parser.add_argument("--out", type=Path, required=True, help="folder in which NAME/1/ is made")
    parser.add_argument(
        "--log-level",
        default="warning",
        choices=["debug", "info", "warning", "error"],
        help="least severe message that is written to stderr (default: warning)",
    )


def run(options: argparse.Namespace) -> None:
    """Import the file, and print the folder, the option that serves it, and what the import found.

    Raises:
        InvalidModel: the file cannot be imported.
    """
    from serve.store.folder import sha256_of  # these imports take longer than --help may
    from serve.store.manifest import MANIFEST, Manifest
    from serve.store.pickles import import_pickle

    logging.getLogger().setLevel(options.log_level.upper())
    folder = import_pickle(options.file, name=options.name, sha256=options.sha256, work_dir=options.out)
    print(f"made {folder}; serve it with --model {options.name}={folder}@sha256:{sha256_of(folder / MANIFEST)}")
    made = Manifest.model_validate_json((folder / MANIFEST).read_bytes()).estimator
    for note in () if made is None else made.notes:
        print(f"note: {note}")
