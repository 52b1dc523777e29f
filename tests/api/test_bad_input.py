"""Bad input of every kind is a 4xx problem with its code and place, and harms nobody beside it."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from bad_requests import BAD_REQUESTS, NUMBER_COLUMN, BadRequest

from serve.core import Batch, Column, ColumnKind, QueryTable
from serve.engine.fake import FakeContext, fake_answer

RECORD = {"amount": 12.5, "age": 41}
NUMBER = "age"
CONTEXT = FakeContext(columns=tuple(Column(name, ColumnKind.NUMBER) for name in RECORD))


async def send(client: httpx.AsyncClient, bad: BadRequest) -> httpx.Response:
    path = f"/v1/models/{bad.model or 'fraud'}/predict"
    return await client.request(bad.method, path, content=bad.body(RECORD, NUMBER), headers=bad.headers)


async def ask_well(client: httpx.AsyncClient, number: int) -> None:
    record = {"amount": number + 0.25, "age": None}
    answer = await client.post("/v1/models/fraud/predict", json={"records": [record]})
    assert answer.status_code == 200
    [expected] = fake_answer(Batch(CONTEXT, CONTEXT.encode(QueryTable.from_records([record])))).tolist()
    assert answer.json()["predictions"][0]["probabilities"] == expected


@pytest.mark.parametrize("bad", BAD_REQUESTS, ids=lambda bad: bad.name)
async def test_refused_with_code_and_place_while_others_are_answered(
    client: httpx.AsyncClient, bad: BadRequest
) -> None:
    answer, *_ = await asyncio.gather(send(client, bad), *(ask_well(client, number) for number in range(4)))
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.status_code == problem["status"] == bad.status
    assert problem["code"] == bad.code
    column = NUMBER if bad.column == NUMBER_COLUMN else bad.column
    assert (problem.get("row"), problem.get("column")) == (bad.row, column)
    assert problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]


async def test_all_of_them_at_once(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(
        *(send(client, bad) for bad in BAD_REQUESTS), *(ask_well(client, number) for number in range(32))
    )
    statuses = [answer.status_code for answer in answers if answer is not None]
    assert statuses == [bad.status for bad in BAD_REQUESTS]


def test_there_are_enough_kinds() -> None:
    assert len({bad.name for bad in BAD_REQUESTS}) == len(BAD_REQUESTS) >= 20
