"""The image as it runs: `make test-images`. Skipped unless TEST_IMAGE names one; `-s` shows the figures."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from containers.container_harness import (
    HARDENED,
    IMAGE,
    ROOT,
    STOP_TIMEOUT_S,
    Container,
    PoissonLoad,
    count,
    engine,
    own_address,
    smoke,
)

pytestmark = [
    pytest.mark.container,
    pytest.mark.skipif(not IMAGE, reason="no image is named; make test-images builds one and runs this"),
]

EMBEDDED = ROOT / "serve" / "store" / "embedded"
COMMANDS = ("serve", "up")
EXAMPLE = json.loads((ROOT / "scripts" / "smoke-expected.json").read_text())["records"][0]


# --- what the image contains ------------------------------------------------------------------------------------------


def in_image(script: str) -> str:
    run = ["run", "--rm", "--network", "host", "--entrypoint", "/bin/sh", *HARDENED, IMAGE, "-c", script]
    done = engine(*run)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_contains_no_build_tools_and_no_caches() -> None:
    tools = "for tool in pip pip3 gcc cc make git curl wget; do command -v $tool; done"
    leftovers = (
        "/root/.cache /tmp/.cache /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb /build"
    )
    script = f"{tools}; ls -d {leftovers} 2>/dev/null; true"
    assert in_image(script) == ""


def test_contains_what_it_runs_with_and_no_development_package() -> None:
    code = "import importlib.metadata as m; print(*sorted(d.name.lower() for d in m.distributions()))"
    installed = in_image(f"python3 -c '{code}'").split()
    assert {"tabpfn-serve", "torch", "ray", "tabpfn", "boto3"} <= set(installed)
    assert not {"pip", "wheel", "pytest", "mypy", "ruff", "hypothesis", "swift"} & set(installed)


def test_versions_are_those_of_constraints_txt() -> None:
    code = "import importlib.metadata as m; [print(d.name, d.version) for d in m.distributions()]"
    lines = in_image(f"python3 -c '{code}'").lower().replace("_", "-").splitlines()
    installed = dict(line.split() for line in lines)
    lock = (ROOT / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    pins = dict(line.split("==") for line in lock)
    differing = {n: (v, pins[n]) for n, v in installed.items() if n in pins and v.split("+")[0] != pins[n]}
    assert not differing
    assert len(set(installed) & set(pins)) > 60


# --- run --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=COMMANDS)
def container(request: pytest.FixtureRequest) -> Iterator[Container]:
    with Container(request.param) as container:
        print(f"\n{request.param}: ready after {container.wait_ready():.1f} s")
        yield container


def test_answers_smoke(container: Container) -> None:
    done = smoke(container.url)
    print("\n" + done.stdout)
    assert done.returncode == 0, done.stdout


def test_listens_on_all_addresses(container: Container) -> None:
    url = f"http://{own_address()}:{container.port}"
    assert httpx.get(f"{url}/v2/health/ready", timeout=10).status_code == 200


def test_runs_without_privileges(container: Container) -> None:
    status = container.run("cat", "/proc/1/status").stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["10001"] * 4
    assert int(fields["CapBnd"], 16) == int(fields["CapEff"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert container.run("touch", "/opt/venv/x").returncode != 0
    assert container.run("touch", "/var/cache/tabpfn-serve/x").returncode == 0


def test_healthcheck_agrees(container: Container) -> None:
    check = json.loads(engine("inspect", "--type", "image", IMAGE).stdout)[0]
    test = (check.get("Healthcheck") or check.get("HealthCheck") or check["Config"]["Healthcheck"])["Test"]
    assert container.run(*test[1:]).returncode == 0
    assert container.run("env", "TABPFN_SERVE_PORT=1", *test[1:]).returncode != 0


def test_prints_one_line(container: Container) -> None:
    """Standard error has the log of the server alone: Ray warns of no shared memory, token or statistics."""
    output, errors = container.output()
    assert len(output.strip().splitlines()) == 1
    assert "tabpfn-serve is ready at" in output
    assert not re.search("warning|error|deprecated", errors, re.I), errors


@pytest.mark.parametrize("command", COMMANDS)
def test_sigterm_under_load_loses_nothing(command: str) -> None:
    with Container(command) as container:
        container.wait_ready()
        load = PoissonLoad(container, json.dumps({"records": [EXAMPLE] * 8}).encode(), rate=25.0)
        time.sleep(4)
        asked_at = time.monotonic()
        exit_code, took_s = container.stop()
        outcomes = load.finish()
    before, after = count(outcomes, lambda t: t < asked_at), count(outcomes, lambda t: t >= asked_at)
    print(f"\n{command}: stopped in {took_s:.1f} s, exit code {exit_code}; sent before: {before}, after: {after}")
    assert exit_code == 0
    assert took_s < STOP_TIMEOUT_S
    assert set(before) == {"200"}
    # A request sent during the stop is answered, answered with 503, or refused; none is cut off.
    assert set(after) <= {"200", "503", "refused"}
    assert before["200"] > 50


@pytest.mark.parametrize("command", COMMANDS)
def test_the_lame_duck_serves_while_it_is_not_ready(command: str) -> None:
    body = {"records": [EXAMPLE]}
    with Container(command, environment={"TABPFN_SERVE_API_LAME_DUCK_S": "30"}) as container:
        container.wait_ready()
        container.signal("TERM")
        while container.is_ready():
            time.sleep(0.1)
        answer = httpx.post(f"{container.url}/v1/models/fraud/predict", json=body, timeout=60)
        assert answer.status_code == 200
        assert not container.is_ready()
        assert container.wait_end() == 0


def test_needs_no_options() -> None:
    """Started with `docker run IMAGE` alone, with a writable root."""
    with Container(hardened=()) as container:
        container.wait_ready()
        assert smoke(container.url).returncode == 0
        assert container.stop()[0] == 0


def test_temporary_folder_without_programs() -> None:
    """No program can be executed in /tmp under Docker's `--tmpfs /tmp`, which is `noexec`."""
    with Container("serve", options=["--tmpfs", "/tmp:rw,noexec,nosuid,nodev,size=256m"]) as container:
        container.wait_ready()
        assert smoke(container.url).returncode == 0


# --- starts that fail -------------------------------------------------------------------------------------------------


def damaged_repository(folder: Path) -> Path:
    for path in EMBEDDED.rglob("*"):
        target = folder / path.relative_to(EMBEDDED)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
            target.chmod(0o600 if path.suffix == ".parquet" else 0o644)
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    return folder


BAD_SETTINGS = [
    pytest.param(["up", "--device", "cuda:0"], {}, "cuda", id="no GPU"),
    pytest.param(["serve", "--device", "cuda:0"], {}, "GPU", id="no GPU, Ray"),
    pytest.param(["up", "--device", "tpu"], {}, "engine.device", id="no such device"),
    pytest.param(["up", "--config", "/none.yaml"], {}, "cannot read /none.yaml", id="no such file"),
    pytest.param(["up", "--model-repository", "/none"], {}, "/none", id="no such repository"),
    pytest.param(["up", "--no-such-setting", "1"], {}, "unrecognized arguments", id="unknown option"),
    pytest.param(["up"], {"TABPFN_SERVE_ENGINE_DEVIZE": "cpu"}, "TABPFN_SERVE_ENGINE_DEVIZE", id="unknown variable"),
    pytest.param(["up"], {"TABPFN_SERVE_PORT": "http"}, "http", id="no such port"),
    pytest.param(
        ["up"],
        {"TABPFN_SERVE_STORE_MODELS": '[{"name": "a", "uri": "/models"}, {"name": "a", "uri": "/models"}]'},
        "a",
        id="two models of one name",
    ),
]


@pytest.mark.parametrize(("command", "environment", "words"), BAD_SETTINGS)
def test_bad_settings_end_the_start(command: list[str], environment: dict[str, str], words: str) -> None:
    with Container(*command, environment=environment) as container:
        code = container.wait_end()
        logs = container.logs().strip()
    print(f"\nexit code {code}: {logs}")
    assert code in (1, 2)
    assert words in logs
    assert "Traceback" not in logs
    assert len([line for line in logs.splitlines() if not line.startswith(("usage:", " "))]) == 1


def test_a_file_that_cannot_be_read_ends_the_start(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    folder = damaged_repository(tmp_path / "models")
    mount = ["--volume", f"{folder}:/models:ro"]
    with Container("up", "--model-repository", "/models", options=mount) as container:
        code, logs = container.wait_end(), container.logs().strip()
    print(f"\nexit code {code}: {logs}")
    assert code == 1
    assert "context.parquet" in logs
    assert len(logs.splitlines()) == 1


# --- KV caches between starts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_a_saved_kv_cache_is_used_by_the_next_start(command: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    settings = {"TABPFN_SERVE_ENGINE_KV_CACHE_DIR": "/var/cache/tabpfn-serve/kv"}
    mount = ["--volume", f"{tmp_path}:/var/cache/tabpfn-serve"]
    times = []
    for _ in range(2):
        with Container(command, environment=settings, options=mount) as container:
            times.append(container.wait_ready())
            assert smoke(container.url).returncode == 0
            container.stop()
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert files, "no cache was written"
    size = files[0].stat().st_size / 1e6
    print(f"\n{command}: ready after {times[0]:.1f} s, with the saved KV cache ({size:.1f} MB) {times[1]:.1f} s")
