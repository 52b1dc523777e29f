"""`tabpfn-serve import`: a fitted estimator (pickle, joblib, `.tabpfn_fit`) into a model folder, ahead of a start."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from serve.store.folder import sha256_of
from serve.store.manifest import MANIFEST
from serve.store.pickles import import_pickle


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `tabpfn-serve`."""
    parser = commands.add_parser("import", help="make a model folder of a pickled, fitted TabPFN estimator")
    parser.add_argument("file", type=Path, help="a pickle, joblib file or .tabpfn_fit archive")
    parser.add_argument("--sha256", required=True, help="the file's SHA-256, from whoever made it; it can run code")
    parser.add_argument("--name", required=True, help="the model's name")
    parser.add_argument("--out", type=Path, required=True, help="folder in which NAME/1/ is made")
    parser.add_argument("--log-level", default="warning", choices=["debug", "info", "warning", "error"])


def run(options: argparse.Namespace) -> None:
    """Print the folder made, and how it is served. Raises InvalidModel."""
    folder = import_pickle(options.file, name=options.name, sha256=options.sha256, work_dir=options.out)
    print(f"{folder} is made; serve it with --model {options.name}={folder}@sha256:{sha256_of(folder / MANIFEST)}")
