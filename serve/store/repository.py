"""The contract of a model repository."""

from __future__ import annotations

from typing import Protocol

from serve.core import ModelDefinition


class ModelStore(Protocol):
    """Names the models to be served and hands over one version of each, verified. May block, on the network too."""

    def names(self) -> list[str]:
        """The models, sorted. Raises InvalidModel if the repository cannot be read or is empty."""

    def load(self, name: str) -> ModelDefinition:
        """The version of a model that is to be served.

        Raises:
            UnknownModel
            InvalidModel: names the file at fault.
            StartupError: it cannot be had from where it is kept.
        """
