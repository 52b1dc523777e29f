"""What applies where a setting is empty or `auto`: by the device, the number format, the cores."""

from typing import Any

import pytest

from serve.settings import EngineSettings, InvalidSettings
from serve.settings.sources import read_settings

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


@pytest.mark.parametrize("value", ["0", -1, "many", 2.5, True, None])
def test_a_number_of_fronts_is_a_whole_number_or_auto(value: Any) -> None:
    with pytest.raises(
        InvalidSettings, match=r"setting api\.num_fronts: must be a whole number, at least 1, or auto, but is"
    ):
        read_settings({"api": {"num_fronts": value}})


def test_auto_is_the_cores_less_two_on_a_gpu_and_one_front_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    auto = {"api": {"num_fronts": "auto"}}
    on_a_gpu = {**auto, "engine": {"device": "cuda:0"}}
    for num_cores, num_fronts in ((1, 1), (2, 1), (3, 1), (4, 2), (16, 14)):
        cores = set(range(num_cores))
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: cores)
        assert read_settings(auto).num_fronts == 1
        assert read_settings(on_a_gpu).num_fronts == num_fronts
    assert read_settings({"api": {"num_fronts": "3"}}).num_fronts == 3
