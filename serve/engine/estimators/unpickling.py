"""Opens pickles of fitted estimators, and admits only the parts of one.

A pickle is a program: it names the functions to call. What is always true here:
- a pickle may name the classes that a fitted estimator consists of (of tabpfn, scikit-learn, numpy and torch's layers,
  each under its own name), and the few functions in `_FUNCTIONS`, which only put arrays and tensors together. Any other
  name is refused before it is imported, so no code that the pickle brings along runs;
- the same is true for pickles inside pickles: torch's storages, joblib's arrays of objects, tabpfn's archives;
- tensors come to the CPU, from whatever device they were saved on.

This is the second line of defence, for a list can be wrong. The first is the operator's decision: only a file with the
SHA-256 that the operator pinned is opened, first in a child process (`importer.py`), then in the engine's worker.
"""

from __future__ import annotations

import importlib
import io
import json
import pickle
import types
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import numpy_pickle  # type: ignore[import-untyped]
from tabpfn.model_loading import load_fitted_tabpfn_model

from serve.core.errors import InvalidModel

_PACKAGES = (
    "tabpfn.architectures", "tabpfn.classifier", "tabpfn.constants", "tabpfn.inference", "tabpfn.inference_config",
    "tabpfn.inference_tuning", "tabpfn.preprocessing", "tabpfn.regressor",
    "sklearn.base", "sklearn.compose", "sklearn.decomposition", "sklearn.impute", "sklearn.pipeline",
    "sklearn.preprocessing", "sklearn.utils._bunch", "torch.nn.modules", "torch.nn.parameter",
    "numpy.dtypes", "pathlib",
)  # fmt: skip
"""Packages whose classes, and whose subpackages' classes, a pickle may name."""

_NAMES = {
    "builtins": "slice set frozenset list dict tuple int float complex bool str bytes bytearray range object",
    "collections": "OrderedDict defaultdict",
    "copyreg": "_reconstructor",
    "_codecs": "encode",
    "numpy": "ndarray dtype log exp log1p",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.numeric": "_frombuffer",
    "numpy.core.numeric": "_frombuffer",
    "numpy.random._pickle": "__generator_ctor __bit_generator_ctor __randomstate_ctor",
    "numpy.random._pcg64": "PCG64",
    "numpy.random._mt19937": "MT19937",
    "numpy.random.bit_generator": "SeedSequence __pyx_unpickle_SeedSequence",
    "torch": "device Size",
    "torch._utils": "_rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter",
    "joblib.numpy_pickle": "NumpyArrayWrapper",
    "tabpfn.preprocessing.steps.utils": "_identity _replace_inf_with_nan",
    "tabpfn.preprocessing.steps.reshape_feature_distribution_step": "_exp_minus_1",
}
_FUNCTIONS = frozenset((module, name) for module, names in _NAMES.items() for name in names.split())

_ARCHIVE = {"init_params.json", "fitted_attrs.joblib", "executor_state.joblib"}


class NotAdmitted(pickle.UnpicklingError):
    """The pickle names an object that is not part of a fitted estimator."""


def find_admitted(module: str, name: str) -> Any:
    """The object that a pickle names. Raises NotAdmitted; an unknown module is refused before it is imported."""
    module = {"copy_reg": "copyreg", "__builtin__": "builtins"}.get(module, module)  # of the old protocols
    if (module, name) == ("torch.storage", "_load_from_bytes"):
        return _load_storage
    if (module, name) in _FUNCTIONS:
        return getattr(importlib.import_module(module), name)
    if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
        return dtype
    if module == "numpy" and isinstance(kind := getattr(np, name, None), type) and issubclass(kind, np.generic):
        return kind
    if "." not in name and any(f"{module}.".startswith(f"{package}.") for package in _PACKAGES):
        found = getattr(importlib.import_module(module), name)
        # a module also exposes what it imports; only its own classes are admitted
        if isinstance(found, type) and (found.__module__, found.__qualname__) == (module, name):
            return found
    if module.startswith("skrub."):
        raise NotAdmitted("it expands dates or free text into columns of its own, which is not supported")
    raise NotAdmitted(f"it names {module}.{name}, which is no part of a fitted TabPFN estimator")


class AdmittingUnpickler(pickle.Unpickler):
    """An unpickler that admits only the parts of an estimator.

    Args:
        file: binary file to read.
        put_aside: gives the object for a key that the writer put in place of it (`file.py`); None refuses every key.
    """

    def __init__(self, file: Any, put_aside: Callable[[Any], Any] | None = None) -> None:
        super().__init__(file)
        self._put_aside = put_aside

    def find_class(self, module: str, name: str) -> Any:
        return find_admitted(module, name)

    def persistent_load(self, key: Any) -> Any:
        if self._put_aside is None:
            raise NotAdmitted("it refers to an object outside the file")
        return self._put_aside(key)


def _load_storage(data: bytes) -> Any:
    """As `torch.storage._load_from_bytes`, but for data only, and always to the CPU."""
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except AttributeError as error:  # torch 2.x has no type for such a storage; plain pickle fails likewise
        raise InvalidModel("it holds 8-bit floats (kv_cache_precision='fp8'), which torch cannot read back") from error


class _JoblibUnpickler(numpy_pickle.NumpyUnpickler):  # type: ignore[misc]
    def find_class(self, module: str, name: str) -> Any:
        return find_admitted(module, name)


@contextmanager
def _admitting_joblib() -> Iterator[None]:
    """joblib reads by the admitting unpicklers inside the block. Only the importing child uses it, for nothing else."""

    def refuse(_: Any) -> Any:
        raise NotAdmitted("it was written by a joblib older than 0.10")

    replacements = {
        "NumpyUnpickler": _JoblibUnpickler,
        "load_compatibility": refuse,
        # joblib opens an array of objects, which is a pickle of its own, by this name
        "pickle": types.SimpleNamespace(load=lambda file: AdmittingUnpickler(file).load()),
    }
    originals = {name: getattr(numpy_pickle, name) for name in replacements}
    try:
        for name, value in replacements.items():
            setattr(numpy_pickle, name, value)
        yield
    finally:
        for name, value in originals.items():
            setattr(numpy_pickle, name, value)


def open_estimator_file(path: Path) -> tuple[Any, str | None]:
    """Open a pickle, a joblib file (compressed or not) or a `.tabpfn_fit` archive.

    Returns:
        The object, on the CPU, and the type of the device that built its KV caches; None where the file does not state
        it.

    Raises:
        InvalidModel: one line on why the file cannot be opened.
    """
    try:
        with _admitting_joblib():
            if zipfile.is_zipfile(path):
                return _open_archive(path)
            found = numpy_pickle.load(path)  # it reads plain pickles as well
            return found, built_on(getattr(found, "devices_", None))
    except NotAdmitted as error:
        raise InvalidModel(f"it is not opened: {error}") from error
    except (AttributeError, ModuleNotFoundError) as error:
        raise InvalidModel(f"another release of tabpfn or scikit-learn made it: {error}") from error
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError, OSError) as error:
        raise InvalidModel(f"it is not a readable pickle, joblib file or .tabpfn_fit archive: {error!r}") from error


def _open_archive(path: Path) -> tuple[Any, str | None]:
    with zipfile.ZipFile(path) as archive:
        names = {name.removeprefix("./") for name in archive.namelist()} - {""}
        if names != _ARCHIVE:
            raise InvalidModel(
                f"it is a ZIP file, but not a .tabpfn_fit archive of tabpfn; it holds {sorted(names)[:5]}"
            )
        params = json.loads(archive.read("init_params.json"))
    weights = params.get("model_path")
    if not isinstance(weights, str) or not Path(weights).is_file():
        raise InvalidModel(
            f"a .tabpfn_fit archive holds no weights, and the checkpoint that this one names, {weights!r}, is not a "
            "file here; put it there, or save the estimator by pickle, which includes the weights"
        )
    estimator = load_fitted_tabpfn_model(path, device="cpu")  # the archive holds pickles
    named = str(params.get("device", "auto"))
    return estimator, None if named == "auto" else torch.device(named).type


def built_on(devices: Any) -> str | None:
    """The type of an estimator's devices; None where there is none, or more than one."""
    kinds = {torch.device(device).type for device in devices or ()}
    return kinds.pop() if len(kinds) == 1 else None
