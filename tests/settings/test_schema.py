"""What applies where a setting is empty: the number format by the device, the tolerance by the number format."""

from typing import Any

import pytest

from serve.settings import EngineSettings

CPU, GPU = {"device": "cpu"}, {"device": "cuda:1"}


@pytest.mark.parametrize(
    ("given", "precision", "tolerance"),
    [
        (CPU, "float32", 1e-5),
        (GPU, "auto", 2e-2),
        (GPU | {"inference_precision": "float32"}, "float32", 1e-5),
        (CPU | {"inference_precision": "auto"}, "auto", 2e-2),
        (GPU | {"inference_precision": "float16"}, "float16", 5e-3),
        (GPU | {"inference_precision": "bfloat16"}, "bfloat16", 2e-2),
        (CPU | {"kv_cache_precision": "bfloat16"}, "float32", 2e-2),
        (CPU | {"kv_cache_precision": "float16"}, "float32", 5e-3),
        (GPU | {"kv_cache_precision": "float32"}, "auto", 2e-2),
        (CPU | {"kv_cache_precision": "bfloat16", "backend": "tabpfn"}, "float32", 1e-5),
        (GPU | {"parity_tolerance": 1e-4}, "auto", 1e-4),
        (CPU | {"parity_tolerance": 1.0}, "float32", 1.0),
    ],
)
def test_precision_follows_the_device_and_tolerance_the_precision(
    given: dict[str, Any], precision: str, tolerance: float
) -> None:
    settings = EngineSettings.model_validate(given)
    assert settings.chosen_precision == precision
    assert settings.allowed_difference == tolerance
    assert EngineSettings.model_validate_json(settings.model_dump_json()) == settings, "as it is sent to the worker"
