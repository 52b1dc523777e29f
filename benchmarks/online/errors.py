"""Why a benchmark ends without a result. Every message says what is wrong, where, and what to do.

A command prints the message of a `BenchmarkError` as one line and exits with status 2 (`command.py`).
"""

from __future__ import annotations


class BenchmarkError(Exception):
    """The benchmark cannot go on; the message is for the person at the terminal."""


class UnusableInput(BenchmarkError):
    """An option, or a file that an option names, from which no load can be made."""


class Unreachable(BenchmarkError):
    """No server answers at the address."""


class Refused(BenchmarkError):
    """The server refuses a request that is sent while it has nothing else to do."""


class WrongAnswers(BenchmarkError):
    """Under load the system answered otherwise than alone, so its numbers are worth nothing."""


class Unsettled(BenchmarkError):
    """The system did not come to rest between two measurements."""


class StartFailed(BenchmarkError):
    """A system that the benchmark starts did not become ready, or ended."""
