"""The core runs without Ray, and without a network."""

import subprocess
import sys

import pytest

WITHOUT_RAY = """
import sys
sys.modules["ray"] = None  # what an import finds where Ray is not installed
import {module}
assert not [name for name in sys.modules if name.startswith("ray.")]
"""


@pytest.mark.parametrize("module", ["serve.replica.predictor", "serve.cli.main", "serve.api", "serve.engine.engine"])
def test_no_ray_is_needed(module: str) -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_RAY.format(module=module)], check=True, timeout=120)


def test_the_engine_shuts_the_network_before_tabpfn_is_imported() -> None:
    code = """
import os, sys
for name in ("TABPFN_NO_BROWSER", "HF_HUB_OFFLINE"):
    os.environ.pop(name, None)
import serve.engine.tabpfn_estimators
assert os.environ["TABPFN_NO_BROWSER"] == os.environ["HF_HUB_OFFLINE"] == "1"
import huggingface_hub.constants
assert huggingface_hub.constants.HF_HUB_OFFLINE
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_server_leaves_torch_to_the_process_of_its_engine() -> None:
    code = """
import sys
import serve.edges.uvicorn_server
assert not {"torch", "tabpfn", "pandas", "sklearn"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
