"""Checks of the machine that take no torch and no Ray, so that a fault is reported within a second.

A check refuses only what is certain to fail; the rest is found while the replica starts.
"""

from __future__ import annotations

from pathlib import Path

from serve.core.errors import InvalidModel
from serve.settings import InvalidSettings, ServerSettings, StoreSettings


def check(settings: ServerSettings) -> None:
    """Raises InvalidSettings where the device or a local model is not there."""
    _check_device(settings.engine.device)
    try:
        _check_models(settings.store)
    except InvalidModel as error:
        raise InvalidSettings(str(error)) from None
    except OSError as error:
        reason = f"{error.filename} cannot be read: {error.strerror}"
        raise InvalidSettings(f"{reason}; correct store.model_repository or store.models") from None


def _check_models(store: StoreSettings) -> None:
    for source in store.models:
        place = source.location
        if isinstance(place, Path) and not place.exists():
            raise InvalidModel(f"model {source.name}: {place} does not exist; correct store.models (--model)")
    if store.model_repository is not None:
        from serve.store import FolderStore  # not above, because it imports pyarrow

        FolderStore(store).names()


def _check_device(device: str) -> None:
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return
    import pynvml

    from serve.telemetry import nvml

    try:
        pynvml.nvmlInit()
        num_gpus = pynvml.nvmlDeviceGetCount()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        raise InvalidSettings(
            f"setting engine.device: {device} needs an NVIDIA GPU, and this machine has no NVIDIA driver; "
            "install it, pass the GPU into the container, or write --device cpu"
        ) from None
    except pynvml.NVMLError:
        return
    visible = nvml.visible_devices()
    if visible is not None:
        num_gpus = len(visible)
    if int(index) >= num_gpus:
        where = "on this machine" if visible is None else "in CUDA_VISIBLE_DEVICES"
        raise InvalidSettings(f"setting engine.device: {device} is not among the {num_gpus} GPUs {where}")
