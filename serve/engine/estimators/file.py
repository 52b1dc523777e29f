"""A fitted estimator in two files: its weights as a checkpoint (safetensors), all the rest as one pickle.

The pickle is written here and read here, by `unpickling.AdmittingUnpickler`; the networks are put aside while it is
written, so that the checkpoint is one as any other, and `memory.py` can read its size off the header.
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
from serve.engine.library import Estimator

CHECKPOINT = "checkpoint.safetensors"
STATE = "estimator.pickle"
_NETWORK = "network"


@dataclass(frozen=True, slots=True)
class StoredEstimator:
    """`built_on`: type of the device where its KV caches were built; None if it has none, or nobody knows."""

    estimator: Estimator
    built_on: str | None


def write(stored: StoredEstimator, folder: Path) -> None:
    """Both files, into a folder. The estimator is on the CPU and has one network. Raises OSError."""
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
    """The network's tensors, and of a regressor the bars, as `tabpfn.model_loading.save_tabpfn_model` names them."""
    tensors = list(estimator.models_[0].state_dict().items())
    bars = getattr(estimator, "znorm_space_bardist_", None)
    if bars is not None:
        tensors += [(f"criterion.{name}", tensor) for name, tensor in bars.state_dict().items()]
    # safetensors refuses tensors that share memory
    return [(name, tensor.detach().clone()) for name, tensor in tensors]


def read(state: Path, checkpoint: Path, *, is_classifier: bool) -> StoredEstimator:
    """What `write` wrote, on the CPU. Raises InvalidModel."""
    networks, *_ = initialize_tabpfn_model(str(checkpoint), "classifier" if is_classifier else "regressor")
    try:
        with state.open("rb") as file:
            held = AdmittingUnpickler(file, lambda _: networks[0]).load()
        return StoredEstimator(held["estimator"], held["built_on"])
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise InvalidModel(f"{state} cannot be opened by this release: {error}") from error
