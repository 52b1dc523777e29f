"""A fitted estimator in two files: its weights as a checkpoint (safetensors), everything else as one pickle.

The pickle is written and read by this module only, with `unpickling.AdmittingUnpickler`. It leaves the network out, so
the checkpoint is like any other, and `memory/sizes.py` can read its size from the header.
"""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabpfn.base import initialize_tabpfn_model
from tabpfn.checkpoint import save_as_safetensors
from tabpfn.model_loading import _resolve_architecture_name

from serve.core.errors import InvalidModel
from serve.engine.estimators.unpickling import AdmittingUnpickler
from serve.engine.tabpfn_estimators import Estimator

CHECKPOINT = "checkpoint.safetensors"
STATE = "estimator.pickle"
_NETWORK = "network"


@dataclass(frozen=True, slots=True)
class StoredEstimator:
    """A fitted estimator.

    Attributes:
        built_on: type of the device that built its KV caches; None where it has none, or the type is not known.
    """

    estimator: Estimator
    built_on: str | None


def write(stored: StoredEstimator, folder: Path) -> None:
    """Write both files into a folder. The estimator is on the CPU and has one network. Raises OSError."""
    estimator = stored.estimator
    (network,) = estimator.models_
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in _state(estimator)}
    checkpoint = {
        "state_dict": state,
        "config": dataclasses.asdict(estimator.configs_[0]),
        "architecture_name": _resolve_architecture_name(estimator.configs_[0]),
        "inference_config": dataclasses.asdict(estimator.inference_config_),
    }
    save_as_safetensors(checkpoint, folder / CHECKPOINT)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> str | None:
            return _NETWORK if value is network else None

    with (folder / STATE).open("wb") as file:
        Pickler(file, protocol=5).dump({"estimator": estimator, "built_on": stored.built_on})


def _state(estimator: Estimator) -> list[tuple[str, torch.Tensor]]:
    """The network's tensors and a regressor's bars, named as by `tabpfn.model_loading.save_tabpfn_model`."""
    tensors = list(estimator.models_[0].state_dict().items())
    bars = getattr(estimator, "znorm_space_bardist_", None)
    if bars is not None:
        tensors += [(f"criterion.{name}", tensor) for name, tensor in bars.state_dict().items()]
    # safetensors refuses tensors that share memory
    return [(name, tensor.detach().clone()) for name, tensor in tensors]


def read(state: Path, checkpoint: Path, *, is_classifier: bool) -> StoredEstimator:
    """Read both files; the estimator is on the CPU. Raises InvalidModel where this release cannot read them."""
    networks, *_ = initialize_tabpfn_model(str(checkpoint), "classifier" if is_classifier else "regressor")
    try:
        with state.open("rb") as file:
            held = AdmittingUnpickler(file, lambda _: networks[0]).load()
        return StoredEstimator(held["estimator"], held["built_on"])
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise InvalidModel(f"{state} cannot be opened by this release: {error}; import its pickle again") from error
