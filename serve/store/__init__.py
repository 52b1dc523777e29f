"""Where models come from: a model repository in a folder, or models named one by one, on this machine or in S3.

`ModelStore` is the contract. `FolderStore` serves a repository, `SourceStore` the setting `store.models`, and
`write_model` writes a model folder. What is always true:
- a file is compared with its SHA-256 before it is parsed;
- nothing is unpickled here: weights are safetensors, contexts are Parquet, and a child process opens pickles;
- an error names the file and the fault, in one line.
"""

from serve.store.folder import FolderStore
from serve.store.repository import ModelStore
from serve.store.sources import SourceStore
from serve.store.writer import write_model

__all__ = ["FolderStore", "ModelStore", "SourceStore", "write_model"]
