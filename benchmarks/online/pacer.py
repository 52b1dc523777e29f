"""Sleep until an absolute time, to about a tenth of a millisecond.

An event loop sleeps in whole milliseconds, and uvloop may wake half a millisecond early. At a latency of a few
milliseconds that is an error of many per cent. So the kernel gets the due time (timerfd, absolute, CLOCK_MONOTONIC: the
clock of `time.monotonic`), and the loop only watches the descriptor. Linux only; `os.timerfd_create` needs Python 3.13.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1


class _TimerSpec(ctypes.Structure):
    """C's `struct itimerspec`: interval (zero: once) and first expiry, each as seconds and nanoseconds."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class Pacer:
    """One timer of the running loop, for one waiter at a time. Raises OSError where the kernel gives no timer."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._timer, self._expire)

    async def until(self, when: float) -> None:
        """Return at or after `when` (of `time.monotonic`), never before; at once if it has passed."""
        if when <= time.monotonic():
            return
        self._waiter = self._loop.create_future()
        seconds = int(when)
        spec = _TimerSpec(0, 0, seconds, int((when - seconds) * 1e9) + 1)
        if self._libc.timerfd_settime(self._timer, _ABSOLUTE, ctypes.byref(spec), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        await self._waiter

    def _expire(self) -> None:
        os.read(self._timer, 8)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """Give the timer back."""
        self._loop.remove_reader(self._timer)
        os.close(self._timer)
