"""A worker that answers with frames of its own making: `hostile_worker.py ANSWER FD LOG_LEVEL`.

It stands for a worker that an operator's pickle took over. `ANSWER` names one of `ANSWERS`, which it sends for the
first call, `Start`, or else for the call after those that it answers properly.
"""

from __future__ import annotations

import math
import pickle
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serve.engine.worker import wire
from serve.engine.worker.messages import Answered, Call, ColumnCoding, Failed, Fit, Fitted, Message, Start, Started

HARMED = "hostile-worker-harmed"
"""Name of the file that a pickle makes where it is opened."""


class Bomb:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(HARMED),)


def of_multiprocessing(data: bytes) -> bytes:
    """As `multiprocessing.Connection.send_bytes` writes it."""
    return struct.pack("!i", len(data)) + data


def frame(header: bytes, body: bytes = b"", *, header_bytes: int | None = None, body_bytes: int | None = None) -> bytes:
    lengths = (len(header) if header_bytes is None else header_bytes, len(body) if body_bytes is None else body_bytes)
    return struct.pack("<4sIQ", wire.MAGIC, *lengths) + header + body


def header_of(message: Message) -> bytes:
    return wire.encode(message)[16:]


CODING = ColumnCoding(None, None, float("nan"), -1.0, None)
ROWS = np.arange(8.0).reshape(4, 2)
FITTED = Fitted(0, ("n", "y"), "compiled", [CODING, CODING], (4, 2))

TO_START: Mapping[str, bytes] = {
    "pickle": pickle.dumps((Bomb(), None)),
    "pickle as multiprocessing sends it": of_multiprocessing(pickle.dumps((Bomb(), None))),
    "pickle in a frame": frame(pickle.dumps((Bomb(), None))),
    "pickle as a body": frame(header_of(Started(1)), pickle.dumps(Bomb())),
    "garbage": bytes(range(1, 64)),
    "huge header": frame(b"", header_bytes=2**32 - 1),
    "huge body": frame(header_of(Started(1)), body_bytes=2**63),
    "header that ends early": frame(header_of(Started(1)), header_bytes=2**30),
    "nested arrays": frame(b"\x91" * 1_000_000),
    "array that claims four billion entries": frame(b"\xdd\xff\xff\xff\xff"),
    "text that is not UTF-8": frame(b"\x81\xa4type\xa2\xff\xfe"),
    "unknown message": frame(b"\x81\xa4type\xa5Other"),
    "unknown field": frame(b"\x82\xa4type\xa7Started\xa1x\x01"),
    "more in flight than any engine has": frame(header_of(Started(3))),
    "none in flight": frame(header_of(Started(0))),
    "answer to another call": wire.encode(Answered((4, 2)), ROWS),
    "call": wire.encode(Start("", 1)),
}
TO_FIT: Mapping[str, bytes] = {
    "wrong length": frame(header_of(FITTED), ROWS.tobytes()[:-8]),
    "negative shape": frame(header_of(Fitted(0, ("n",), "compiled", [CODING], (-1, -8))), ROWS.tobytes()),
    "more rows than the model may have": frame(header_of(FITTED), body_bytes=8 * 2 * 1_025),
    "a coding short": wire.encode(Fitted(0, ("n", "y"), "compiled", [CODING], (4, 2)), ROWS),
    "rows of another width": wire.encode(Fitted(0, ("n", "y"), "compiled", [CODING, CODING], (8, 1)), ROWS),
    "codes for no values": wire.encode(
        Fitted(0, ("n", "y"), "compiled", [CODING, ColumnCoding(["a"], [1.0, 2.0], 0.0, 0.0, None)], (4, 2)), ROWS
    ),
}
TO_PREDICT: Mapping[str, bytes] = {
    "more outputs than were asked for": wire.encode(Answered((4, 2)), ROWS),
    "endless preparation": wire.encode(Answered((3, 2), None, math.inf), ROWS[:3]),
    "preparation of no length": wire.encode(Answered((3, 2), None, math.nan), ROWS[:3]),
    "preparation that ended before it began": wire.encode(Answered((3, 2), None, -1.0), ROWS[:3]),
    "wrong answer behind two calls": wire.encode(Answered((4, 2)), ROWS),
    "body that ends early": frame(header_of(Answered((3, 2))), b"\x00" * 40, body_bytes=48),
    "error of an unknown class": wire.encode(Failed("SystemExit", "of the worker's choice")),
    "error that lacks its attributes": wire.encode(Failed("Overloaded", "of the worker's choice")),
}


def run(answer: str, fd: int) -> None:
    connection = socket.socket(fileno=fd)
    proper: Mapping[type, Callable[[], bytes]] = {
        Start: lambda: wire.encode(Started(2)),
        Fit: lambda: wire.encode(FITTED, ROWS),
    }

    def receive() -> Call:
        limits = {"max_header_bytes": wire.MAX_HEADER_BYTES, "max_body_bytes": sys.maxsize}
        return wire.receive(connection, wire.CALL, **limits)[0]

    while True:
        call = receive()
        hostile = {Start: TO_START, Fit: TO_FIT}.get(type(call), TO_PREDICT).get(answer)
        is_behind_two = hostile is not None and answer == "wrong answer behind two calls"
        if is_behind_two:
            receive()
        connection.sendall(proper[type(call)]() if hostile is None else hostile)
        if is_behind_two:
            receive()  # none comes: the replica ends this process
        if hostile is not None:
            return


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]))
