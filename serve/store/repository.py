"""The contract of every source of models."""

from __future__ import annotations

from typing import Protocol

from serve.core import ModelDefinition


class ModelStore(Protocol):
    """Names the models that are to be served, and loads one version of each, verified. May wait for the network."""

    def names(self) -> list[str]:
        """Return the names of the models, sorted.

        Raises:
            InvalidModel: the repository cannot be read, or holds no model.
        """

    def load(self, name: str) -> ModelDefinition:
        """Return the version of a model that is to be served.

        Raises:
            UnknownModel: no model has this name.
            InvalidModel: a file is absent, damaged or inconsistent; the message names the file.
            StartupError: the model cannot be fetched from where it is kept.
        """
