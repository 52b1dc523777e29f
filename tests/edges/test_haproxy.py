"""The program that Ray runs in HAProxy's place. With the real Ray: test_ray_deployment.py."""

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from serve.edges.ray.haproxy import HAProxy
from serve.edges.ray.haproxy_exec import with_one_listener

CONFIG = """\
global
    maxconn 4096
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind 127.0.0.1:8080
    acl routes path -i /-/routes
backend http-app
    server replica 127.0.0.1:30000 check
listen stats
  bind *:8404
  stats enable
"""


def run_program(folder: Path, host: str) -> tuple[str, list[str]]:
    """(the configuration, the arguments) as HAProxy is given them."""
    haproxy = folder / "it's haproxy"  # a name that a shell would misread
    haproxy.write_text('#!/bin/sh\ncat "$3"\nprintf "%s\\n" "$@" >&2\n')
    haproxy.chmod(0o700)
    environment = {**os.environ, **HAProxy(folder).prepare(str(haproxy), host, 8080, 9.5)}
    config = Path(environment["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"])
    config.write_text(CONFIG)
    command = [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(config), "-sf", "17"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("host", "address"), [("127.0.0.1", "127.0.0.1:8080"), ("0.0.0.0", "0.0.0.0:8080"), ("::1", "[::1]:8080")]
)
def test_only_the_public_listener_is_left(tmp_path: Path, host: str, address: str) -> None:
    config, arguments = run_program(tmp_path, host)
    assert [line.strip() for line in config.splitlines() if "bind" in line] == [f"bind {address}"]
    assert "server replica 127.0.0.1:30000 check" in config
    assert "maxconn 4096" in config
    assert "stats enable" not in config
    assert arguments == ["-db", "-f", str(tmp_path / "haproxy.cfg"), "-sf", "17"]


def test_a_configuration_without_those_listeners_is_left_alone() -> None:
    config = "global\n    maxconn 4096\nbackend http-app\n    server replica 127.0.0.1:30000\n"
    assert with_one_listener(config, "127.0.0.1:8080", 10) == config


async def test_closes_its_own_haproxy_and_no_other(tmp_path: Path) -> None:
    mine, others = tmp_path / "mine", tmp_path / "others"
    sleepers = [
        subprocess.Popen(  # noqa: ASYNC220 - starts at once
            ["sh", "-c", 'trap "exit 7" USR1; echo up; while :; do sleep 0.1; done', "-f", str(config)], stdout=-1
        )
        for config in (mine / "node" / "haproxy.cfg", others / "haproxy.cfg")
    ]
    for sleeper in sleepers:
        assert sleeper.stdout is not None
        sleeper.stdout.readline()
    haproxy = HAProxy(mine)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(haproxy.wait_empty(), 0.1)
    await haproxy.close()
    await asyncio.wait_for(haproxy.wait_empty(), 20)
    assert sleepers[0].wait(10) == 7
    assert sleepers[1].poll() is None
    sleepers[1].kill()
    sleepers[1].wait()
    for sleeper in sleepers:
        sleeper.stdout.close()
