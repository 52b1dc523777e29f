"""Imports a pickled estimator, in the child process that `sandbox.py` starts.

The store (`store/pickle_child.py`) starts the child for one file whose SHA-256 the operator pinned. The child is the
process that is exposed to the pickle: its environment holds no secrets, and it has no network where the system permits
that. It writes the files of `file.py`, and `outcome.json` with the facts for the parent, or one line on what is wrong.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from sklearn.exceptions import InconsistentVersionWarning

from serve.core import Task
from serve.core.errors import InvalidModel
from serve.engine import tabpfn_estimators
from serve.engine.estimators import caches as estimator_caches
from serve.engine.estimators import file as estimator_file
from serve.engine.estimators.differences import describe_differences
from serve.engine.estimators.file import StoredEstimator
from serve.engine.estimators.schema import read_schema
from serve.engine.estimators.unpickling import open_estimator_file
from serve.engine.tabpfn_estimators import Estimator

OUTCOME = "outcome.json"
_ESTIMATORS = {"TabPFNClassifier": Task.CLASSIFICATION, "TabPFNRegressor": Task.REGRESSION}
_FITTED = (
    "models_", "configs_", "inference_config_", "inferred_feature_schema_", "ordinal_encoder_", "date_transformer_",
    "text_transformer_", "n_estimators_", "n_train_samples_", "ensemble_preprocessor_", "softmax_temperature_",
)  # fmt: skip


def main(file: Path, folder: Path, known_checkpoint: Path | None) -> None:
    """Import a file and write `outcome.json`; no fault of the file raises an error."""
    torch.set_num_threads(1)
    outcome: dict[str, Any]
    try:
        outcome = {"facts": import_estimator(file, folder, known_checkpoint)}
    except InvalidModel as error:
        outcome = {"error": str(error)}
    except (MemoryError, torch.OutOfMemoryError):
        outcome = {"error": "it needs more memory than this machine has free"}
    except Exception as error:
        outcome = {"error": f"it cannot be imported: {type(error).__name__}: {error}"}
    (folder / OUTCOME).write_text(json.dumps(outcome))


def import_estimator(file: Path, folder: Path, known_checkpoint: Path | None) -> dict[str, Any]:
    """Write the estimator's files into `folder`. Returns the facts for a manifest. Raises InvalidModel."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator, built_on = open_estimator_file(file)
        task = _check(estimator)
    _bring_to_cpu(estimator)
    schema = read_schema(estimator)
    names = tabpfn_estimators.class_names(estimator)
    if len(set(names)) < len(names):
        raise InvalidModel(f"two of its classes have the same name: {sorted(names)}")
    is_cached = estimator_caches.has_caches(estimator)
    estimator_file.write(StoredEstimator(estimator, built_on if is_cached else None), folder)
    again = _check_written(estimator, folder, task)
    versions = {str(w.message).splitlines()[0] for w in caught if issubclass(w.category, InconsistentVersionWarning)}
    return {
        "task": task,
        "columns": [{"name": column.name, "kind": column.kind} for column in schema.columns],
        "example": schema.example(),
        "num_context_rows": int(estimator.n_train_samples_),
        "num_members": int(estimator.n_estimators_),
        "has_kv_caches": is_cached,
        "architecture": type(estimator.models_[0]).__name__,
        "is_known_checkpoint": known_checkpoint is not None and _holds(estimator.models_[0], known_checkpoint),
        "warnings": sorted(versions),
        "notes": describe_differences(again, schema),
    }


def _check(estimator: Any) -> Task:
    """The estimator's task. Raises InvalidModel for an object that cannot be served."""
    kind = type(estimator).__name__
    if type(estimator).__module__.partition(".")[0] != "tabpfn" or kind not in _ESTIMATORS:
        raise InvalidModel(f"it holds a {kind}, not a TabPFNClassifier or TabPFNRegressor")
    if getattr(estimator, "is_constant_target_", False):
        raise InvalidModel("it was fitted on a target with a single value, which is its only answer")
    if not hasattr(estimator, "executor_"):
        raise InvalidModel("its estimator was not fitted before it was saved")
    if estimator.differentiable_input or not isinstance(estimator.executor_, estimator_caches.SERVED):
        raise InvalidModel(
            f"it was fitted for training (fit_mode={estimator.fit_mode!r}); fit it with fit_mode='fit_with_cache'"
        )
    absent = [name for name in _FITTED if not hasattr(estimator, name)]
    if absent or estimator.ordinal_encoder_ is None:
        raise InvalidModel(f"another release of tabpfn fitted it: it has no {', '.join(absent) or 'encoder'}")
    if len(estimator.models_) != 1:
        raise InvalidModel(f"it averages over {len(estimator.models_)} checkpoints; only one is supported")
    return _ESTIMATORS[kind]


def _bring_to_cpu(estimator: Estimator) -> None:
    """Move the estimator to the CPU, and let it hold the network of its executor.

    After use on several devices the two networks are different objects.
    """
    estimator.to("cpu")
    estimator.models_ = [cache.get_any() for cache in estimator.executor_.model_caches]
    # the path is of the machine that fitted it; the weights go into the checkpoint
    estimator.model_path = None


def _check_written(estimator: Estimator, folder: Path, task: Task) -> Estimator:
    """The estimator as its files hold it. Raises InvalidModel where its network is another one."""
    state, checkpoint = folder / estimator_file.STATE, folder / estimator_file.CHECKPOINT
    again = estimator_file.read(state, checkpoint, is_classifier=task is Task.CLASSIFICATION).estimator
    if not _equal(estimator.models_[0].state_dict(), again.models_[0].state_dict()):
        raise InvalidModel("its network is not the one that its configuration describes")
    return again


def _holds(network: torch.nn.Module, checkpoint: Path) -> bool:
    return _equal(network.state_dict(), load_file(checkpoint))


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two networks have equal weights; the second may hold further tensors."""
    return all(name in other and torch.equal(tensor.float(), other[name].float()) for name, tensor in one.items())
