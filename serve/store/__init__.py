"""The model repository: where models come from. `ModelStore` is the contract, `FolderStore` the local folder."""

from serve.store.folder import FolderStore
from serve.store.repository import ModelStore
from serve.store.writer import write_model

__all__ = ["FolderStore", "ModelStore", "write_model"]
