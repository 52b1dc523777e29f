"""Where models come from. `ModelStore` is the contract, `FolderStore` a repository, `SourceStore` models one by one."""

from serve.store.folder import FolderStore
from serve.store.repository import ModelStore
from serve.store.sources import SourceStore
from serve.store.writer import write_model

__all__ = ["FolderStore", "ModelStore", "SourceStore", "write_model"]
