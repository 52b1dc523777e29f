"""/docs works without any other host, and /openapi.json tells the truth."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import httpx
import pytest
from api_harness import EXAMPLE, MakePredictor
from starlette.routing import Route

from serve.api import create_app
from serve.api.openapi import join
from serve.api.routes import Description
from serve.api.statuses import INTERNAL_ERROR, STATUSES
from serve.replica.predictor import Predictor


def walk(node: object) -> Iterator[dict[str, object]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


async def test_the_page_and_its_parts_come_from_here(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    addresses = re.findall(r"""(?:href|src)="([^"]+)"|url: '([^']+)'""", page.text)
    parts = [first or second for first, second in addresses]
    assert len(parts) == 4
    for part in parts:
        assert part.startswith("/")
        assert (await client.get(part)).status_code == 200
    assert "://" not in page.text
    assert '"validatorUrl": null' in page.text
    assert "url(http" not in (await client.get("/docs/assets/swagger-ui.css")).text


async def test_the_version_is_one_that_the_bundled_page_reads(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.0.")
    assert document["info"]["title"] == "tabpfn-serve"
    assert "curl" in document["info"]["description"]


async def test_every_reference_leads_somewhere(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    references = {node["$ref"] for node in walk(document) if "$ref" in node}
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references == known


async def test_the_request_examples_are_answered(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/v1/models/{model}/predict"]["post"]
    [model] = [parameter["example"] for parameter in operation["parameters"] if parameter["name"] == "model"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    assert set(examples) == {"records", "table"}
    assert document["components"]["schemas"]["Query"]["example"] == examples["records"]["value"]
    for example in examples.values():
        response = await client.post(f"/v1/models/{model}/predict", json=example["value"])
        assert response.status_code == 200


async def test_every_route_is_documented_and_every_documented_route_is_there(make_predictor: MakePredictor) -> None:
    app = create_app(make_predictor())
    routes = {
        (route.path, method.lower())
        for route in app.routes
        if isinstance(route, Route) and route.path not in ("/docs", "/openapi.json")
        for method in route.methods or ()
    }
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        document = (await client.get("/openapi.json")).json()
    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert described == {(path, method) for path, method in routes if method != "head"}
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    tags = {tag["name"] for tag in document["tags"]}
    assert all(set(operation["tags"]) <= tags for operation in operations)


async def test_the_parameters_of_each_path_are_documented(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            given = [parameter for parameter in operation.get("parameters", ()) if parameter["in"] == "path"]
            assert [parameter["name"] for parameter in given] == re.findall(r"{(\w+)}", path)
            assert [parameter["example"] for parameter in given] == ["fraud", "3"][: len(given)]


async def test_a_server_behind_a_prefix_documents_it(make_predictor: MakePredictor) -> None:
    transport = httpx.ASGITransport(create_app(make_predictor()), root_path="/scores")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        document = (await client.get("/scores/openapi.json")).json()
        page = (await client.get("/scores/docs")).text
    assert document["servers"] == [{"url": "/scores"}]
    assert "'/scores/openapi.json'" in page


def test_two_parts_must_not_disagree() -> None:
    first, same = Description({"/a": {"get": {}}}, {"A": {}}), Description({"/b": {"get": {}}}, {"A": {}})
    assert set(join([first, same])["paths"]) == {"/a", "/b"}
    with pytest.raises(ValueError, match="schema A"):
        join([first, Description(schemas={"A": {"type": "string"}})])
    with pytest.raises(ValueError, match="path /a"):
        join([first, Description({"/a": {"post": {}}})])


@pytest.mark.parametrize("path", ["/v1/models/{model}/predict", "/v1/models/{model}/versions/{version}/predict"])
async def test_errors_of_a_prediction_are_documented(client: httpx.AsyncClient, path: str) -> None:
    document = (await client.get("/openapi.json")).json()
    responses = document["paths"][path]["post"]["responses"]
    told = {code for response in responses.values() for code in re.findall(r"`(\w+)`", response["description"])}
    assert told == {kind.code for kind in STATUSES} - {"unknown_route", "method_not_allowed"}
    assert INTERNAL_ERROR not in told, "a bug is not a contract"
    assert set(responses) == {"200"} | {str(status.http) for kind, status in STATUSES.items() if kind.code in told}


async def test_the_answers_have_the_documented_keys(client: httpx.AsyncClient) -> None:
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    body = {"records": [EXAMPLE]}
    for schema, answer in (
        ("ClassificationAnswer", await client.post("/v1/models/fraud/predict", json=body)),
        ("RegressionAnswer", await client.post("/v1/models/price/predict", json=body)),
        ("ModelDescription", await client.get("/v1/models/fraud")),
        ("ModelList", await client.get("/v1/models")),
        ("Problem", await client.post("/v1/models/fraud/predict", json={"records": [{"amount": "x"}]})),
    ):
        keys = set(answer.json())
        assert set(schemas[schema]["required"]) <= keys <= set(schemas[schema]["properties"])


async def test_it_can_be_read_before_a_model_is_ready(
    make_predictor: MakePredictor, unstarted: Callable[[Predictor], httpx.AsyncClient]
) -> None:
    predictor = make_predictor()
    async with unstarted(predictor) as client:
        early = (await client.get("/openapi.json")).json()
        await predictor.start()
        late = (await client.get("/openapi.json")).json()
        await predictor.close()
    assert "MODEL" in early["info"]["description"]
    assert "fraud" in late["info"]["description"]
