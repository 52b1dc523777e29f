"""KV caches on disk: one safetensors file per fitted context, so that a start reads what an earlier start computed.

What is always true:
- the file is data: tensors and JSON. Classes come from the fixed table `_CLASSES`, never from a name in the file;
- nothing of a file is used unless all of it is what was written, for exactly this fit. `body` (JSON in the header)
  holds the structure, the fingerprint, and each tensor's dtype, shape and SHA-256; `body_sha256` covers the body.
  Tensors are read into memory of their own and digested there, so a file that changes afterwards changes no answer;
- the fingerprint states what the caches depend on: weights, context, options, precision, releases, device type.
  `inputs` states what the network really received: digests of the preprocessed rows and targets, one per forward pass
  of the build. A reader compares both. Preprocessing is fitted anew at each start, and caches that were built from
  other preprocessed rows (an SVD with another sign, another quantile) would answer wrongly without an error;
- a file appears whole or not at all (`atomic_write`).

If anything is wrong with a file, one line of the log gives the reason, and the caller builds the caches anew.
The file holds values of the context's rows, so only its owner may read it (mode 0600).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeAlias

import torch
from tabpfn.architectures.kv_cache import KVCache, KVCacheEntry, QuantizedKVCacheEntry
from tabpfn.architectures.tabpfn_v2 import TabPFNV2Cache
from tabpfn.architectures.tabpfn_v2_5 import TabPFNV2p5Cache
from tabpfn.architectures.tabpfn_v2_6 import TabPFNV2p6Cache
from tabpfn.architectures.tabpfn_v3 import TabPFNV3Cache
from tabpfn.architectures.tabpfn_v3_5 import TabPFNV3p5Cache
from tabpfn.base import determine_precision

from serve.core import ModelDefinition
from serve.core.files import atomic_write
from serve.engine.tensor_file import DTYPE_NAMES, DTYPES, bytes_of, write_tensors

_log = logging.getLogger(__name__)

FORMAT = "tabpfn-serve kv caches, 1"
Fingerprint: TypeAlias = dict[str, str]
"""What the caches depend on, by part, so that a message can name the part that differs."""
Json: TypeAlias = Any
_MAX_HEADER_BYTES = 100_000_000
"""The most that safetensors reads; a damaged length must not fill the memory."""

_CLASSES: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        KVCacheEntry, QuantizedKVCacheEntry,
        TabPFNV2Cache, TabPFNV2p5Cache, TabPFNV2p6Cache, TabPFNV3Cache, TabPFNV3p5Cache,
    )
}  # fmt: skip


class StaleCaches(Exception):
    """The caches do not belong to this fit; the message says why. The engine handles it itself."""


@dataclass(frozen=True, slots=True)
class Caches:
    """The caches that a build of `InferenceEngineExplicitKVCache` makes.

    Attributes:
        caches: `kv_caches`, one per group of members.
        groups: `cache_groups`, the members that each cache holds, in order.
        inputs: SHA-256 of the network's inputs (`digest_tensors`), one per forward pass of the build, in order.
    """

    caches: Sequence[KVCache]
    groups: Sequence[Sequence[int]]
    inputs: Sequence[str]


def fingerprint_of(definition: ModelDefinition, settings: Mapping[str, Any], device: str) -> Fingerprint:
    """Everything that the KV caches of a model depend on.

    Args:
        settings: the arguments of tabpfn's estimator, which include the ensemble options and the precision.
        device: `cpu` or `cuda:N`.
    """
    context, place = definition.context, torch.device(device)
    columns = [(column.name, column.kind) for column in context.columns]
    cells = [context.cells[column.name] for column in context.columns]
    options = {key: str(value) for key, value in settings.items() if key not in ("model_path", "device")}
    checkpoint = Path(definition.checkpoint_path)
    status = checkpoint.stat()
    return {
        "checkpoint": _file_digest(checkpoint, status.st_mtime_ns, status.st_size),
        "context": _digest(_dump([context.task, columns, cells, context.target])),
        "ensemble options": _dump(options),
        # "auto" depends on the processor; v2 draws its column embeddings on the device that computes
        "precision": str(determine_precision(settings["inference_precision"], [place])),
        "device type": place.type,
        "tabpfn": version("tabpfn"),
        "torch": torch.__version__,
    }


def digest_tensors(*tensors: torch.Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of the tensors; waits for the device."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(_dump([DTYPE_NAMES[tensor.dtype], tensor.shape]).encode())
        digest.update(bytes_of(tensor.detach().cpu().contiguous()))
    return digest.hexdigest()


def save(path: Path, built: Caches, fingerprint: Fingerprint) -> None:
    """Write the file, whole or not at all.

    Raises:
        OSError: the folder cannot be written.
        TypeError: a cache holds a value that this format does not have, such as of another release of tabpfn.
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = _Encoder(tensors).encode(list(built.caches), "")
    entries = {name: [DTYPE_NAMES[t.dtype], list(t.shape), _digest(bytes_of(t))] for name, t in tensors.items()}
    facts = {"fingerprint": fingerprint, "inputs": built.inputs, "groups": built.groups}
    body = _dump({**facts, "structure": structure, "tensors": entries})
    metadata = {"format": FORMAT, "body": body, "body_sha256": _digest(body)}
    with atomic_write(path) as part, part.open("wb") as file:
        write_tensors(file, tensors, metadata)
    _log.info("KV caches written to %s, %.1f MB", path, path.stat().st_size / 1e6)


def load(path: Path, fingerprint: Fingerprint, device: str) -> Caches | None:
    """The file's caches on `device`; None for a file that cannot be used, with the reason in the log."""
    try:
        with _open(path) as file:
            return _read(file, fingerprint, torch.device(device))
    except FileNotFoundError:
        _log.info("no KV cache file %s yet", path)
    except StaleCaches as reason:
        _log.warning("KV cache file %s is not used: %s", path, reason)
    except Exception as error:  # a damaged file can raise anything, and must not stop the start
        _log.warning("KV cache file %s is not used: it cannot be read (%s: %s)", path, type(error).__name__, error)
    return None


def _open(path: Path) -> BufferedReader:
    # without O_NONBLOCK, a pipe in the file's place would hold up the start for ever
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise StaleCaches("it is no file")
    return file


def _read(file: BufferedReader, fingerprint: Fingerprint, device: torch.device) -> Caches:
    header, start, size = _read_header(file)
    metadata = header.pop("__metadata__", {})
    if metadata.get("format") != FORMAT:
        raise StaleCaches(f"its format is {metadata.get('format')!r}; this release reads {FORMAT!r}")
    if _digest(metadata["body"]) != metadata["body_sha256"]:
        raise StaleCaches("it is damaged: the digest of its description differs")
    body = json.loads(metadata["body"])
    if body["fingerprint"] != fingerprint:
        parts = sorted(fingerprint.keys() | body["fingerprint"].keys())
        differs = [part for part in parts if fingerprint.get(part) != body["fingerprint"].get(part)]
        raise StaleCaches(f"it was made with another {', '.join(differs)}")
    described = {name: entry[:2] for name, entry in body["tensors"].items()}
    if {name: [entry["dtype"], entry["shape"]] for name, entry in header.items()} != described:
        raise StaleCaches("it is damaged: its tensors are not the ones described")
    tensors: dict[str, torch.Tensor] = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = _check_range(name, entry, end, size)
        file.seek(start + begin)
        tensors[name] = _read_tensor(file, name, body["tensors"][name]).to(device)
    if end != size:
        raise StaleCaches(f"it is damaged: {size - end} bytes belong to no tensor")
    return Caches(_decode(body["structure"], tensors), body["groups"], body["inputs"])


def _read_header(file: BufferedReader) -> tuple[dict[str, Any], int, int]:
    """The safetensors header, the offset of the data, and the number of bytes of data."""
    total = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if total < 8 or 8 + length > total:
        raise StaleCaches(f"it is cut short: {total} bytes, its header alone has {length}")
    if length > _MAX_HEADER_BYTES:
        raise StaleCaches(f"it is damaged: a header of {length} bytes")
    header: dict[str, Any] = json.loads(file.read(length))
    return header, 8 + length, total - 8 - length


def _check_range(name: str, entry: Mapping[str, Any], expected: int, size: int) -> tuple[int, int]:
    """The range of a tensor's bytes. Raises StaleCaches unless it follows the tensor before, lies inside the file, and
    has the size of the tensor's shape."""
    begin, end = entry["data_offsets"]
    num_bytes = math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize
    if begin != expected or end != begin + num_bytes:
        raise StaleCaches(f"it is damaged: tensor {name} lies at bytes {begin} to {end}, not {expected}")
    if end > size:
        raise StaleCaches(f"it is cut short: tensor {name} ends at byte {end} of {size}")
    return begin, end


def _read_tensor(file: BufferedReader, name: str, entry: Sequence[Any]) -> torch.Tensor:
    # memory of its own: a mapped file could change after it was digested, and alignment can change the last bit
    tensor = torch.empty(entry[1], dtype=DTYPES[entry[0]])
    data = bytes_of(tensor)
    if file.readinto(data) != len(data):
        raise StaleCaches(f"it is cut short at tensor {name}")
    if _digest(data) != entry[2]:
        raise StaleCaches(f"it is damaged: the digest of tensor {name} differs")
    return tensor


class _Encoder:
    """Nested caches to JSON. Tensors go into `tensors` by their path; a tensor that occurs twice is stored once."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self._tensors = tensors
        self._names: dict[int, str] = {}

    def encode(self, value: Any, path: str) -> Json:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, torch.Tensor):
            return {"tensor": self._put(value, path)}
        if isinstance(value, torch.dtype):
            return {"dtype": DTYPE_NAMES[value]}
        if isinstance(value, list | tuple):
            items = [self.encode(item, f"{path}.{index}".lstrip(".")) for index, item in enumerate(value)]
            return {"tuple" if isinstance(value, tuple) else "list": items}
        if isinstance(value, dict):
            return {"dict": [[key, self.encode(item, f"{path}.{key}")] for key, item in value.items()]}
        if _CLASSES.get(type(value).__name__) is not type(value):
            raise TypeError(f"{path}: a KV cache file cannot hold a value of type {type(value).__name__}")
        names = [field.name for field in dataclasses.fields(value)]
        fields = {name: self.encode(getattr(value, name), f"{path}.{name}") for name in names}
        return {"class": type(value).__name__, "fields": fields}

    def _put(self, tensor: torch.Tensor, path: str) -> str:
        if id(tensor) not in self._names:
            self._tensors[path] = tensor.detach().cpu().contiguous()
            self._names[id(tensor)] = path
        return self._names[id(tensor)]


def _decode(node: Json, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    if "class" in node:
        kind = _CLASSES.get(node["class"])
        if kind is None or {field.name for field in dataclasses.fields(kind)} != node["fields"].keys():
            raise StaleCaches(f"its structure is unknown to this release: {node['class']}")
        return kind(**{name: _decode(value, tensors) for name, value in node["fields"].items()})
    ((tag, content),) = node.items()
    if tag == "tensor":
        return tensors[content]
    if tag == "dtype":
        return DTYPES[content]
    if tag == "dict":
        return {key: _decode(value, tensors) for key, value in content}
    items = [_decode(item, tensors) for item in content]
    return tuple(items) if tag == "tuple" else items


def _dump(value: Json) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, default=repr)


def _digest(data: str | memoryview) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


@functools.lru_cache(maxsize=64)
def _file_digest(path: Path, _mtime_ns: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
