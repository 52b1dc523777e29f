"""How a system is asked and how it answers: the bytes of a request, and the numbers in an answer's JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.online.records import Record

_USER_AGENT = "User-Agent: tabpfn-serve-load"


@dataclass(frozen=True)
class Wire:
    """The path to which `{"records": [...]}` is posted, and the headers beside the usual ones."""

    path: str = "/predict"
    headers: tuple[tuple[str, str], ...] = ()

    def request(self, host: str, rows: Sequence[Record], extra: Mapping[str, str] | None = None) -> bytes:
        """A whole HTTP/1.1 request as bytes."""
        body = json.dumps({"records": list(rows)}, allow_nan=False).encode()
        lines = [f"{name}: {value}" for name, value in (*self.headers, *(extra or {}).items())]
        head = "\r\n".join(
            [
                f"POST {self.path} HTTP/1.1",
                f"Host: {host}",
                _USER_AGENT,
                "Accept: application/json",
                "Content-Type: application/json",
                *lines,
                f"Content-Length: {len(body)}",
            ]
        )
        return head.encode("ascii") + b"\r\n\r\n" + body


def native_wire(model: str) -> Wire:
    """The native protocol of tabpfn-serve: `POST /v1/models/{model}/predict`."""
    return Wire(f"/v1/models/{model}/predict")


def get_request(host: str, path: str) -> bytes:
    """A GET as bytes."""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{_USER_AGENT}\r\n\r\n".encode("ascii")


def numbers(answer: Any) -> list[float]:
    """Every predicted number in order: of a native answer those of `predictions`, of any other answer all numbers."""
    if isinstance(answer, Mapping) and "predictions" in answer:
        answer = answer["predictions"]
    return list(_numbers(answer))


def _numbers(value: Any) -> list[float]:
    if isinstance(value, Mapping):
        return [number for name in sorted(value) for number in _numbers(value[name])]
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def read_numbers(body: bytes) -> list[float] | None:
    """`numbers` of an answer's body; None where the body is no JSON."""
    try:
        return numbers(json.loads(body))
    except ValueError:
        return None


def difference(found: Sequence[float] | None, expected: Sequence[float]) -> float:
    """Largest difference of two answers; infinite where there is nothing to compare or the lengths differ."""
    if found is None or len(found) != len(expected):
        return float("inf")
    return max((abs(a - b) for a, b in zip(found, expected, strict=True)), default=float("inf"))
