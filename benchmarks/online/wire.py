"""How a system is asked and how it answers: where its requests go, and the numbers in its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.online.records import Record


@dataclass(frozen=True)
class Wire:
    """Where `{"records": [...]}` is posted, and with which headers beside the usual ones."""

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
                "User-Agent: tabpfn-serve-load",
                "Accept: application/json",
                "Content-Type: application/json",
                *lines,
                f"Content-Length: {len(body)}",
            ]
        )
        return head.encode("ascii") + b"\r\n\r\n" + body


def native_wire(model: str) -> Wire:
    """Our own native door."""
    return Wire(f"/v1/models/{model}/predict")


def predict_request(host: str, model: str, rows: Sequence[Record]) -> bytes:
    """`POST /v1/models/{model}/predict` as the bytes on the wire."""
    return native_wire(model).request(host, rows)


def numbers(answer: Any) -> list[float]:
    """Every number that was predicted, in order; of a native answer the predictions only, of others all there is."""
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
    """`numbers` of an answer's body; None where it is no JSON."""
    try:
        return numbers(json.loads(body))
    except ValueError:
        return None


def difference(found: Sequence[float] | None, expected: Sequence[float]) -> float:
    """Largest difference of two answers; infinite where they are not even of one length."""
    if found is None or len(found) != len(expected):
        return float("inf")
    return max((abs(a - b) for a, b in zip(found, expected, strict=True)), default=float("inf"))
