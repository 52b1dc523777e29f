"""One end of the connection between the core and a front, on an event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Protocol, cast

from serve.edges.fronts.frames import FrameReader, MalformedFrame

_log = logging.getLogger(__name__)


class Peer(Protocol):
    """What receives the frames of the other end."""

    def receive(self, kind: int, payload: memoryview) -> None:
        """One frame. May raise MalformedFrame, which ends the connection."""

    def lost(self) -> None:
        """The other end is gone. Called once, last."""


class Channel(asyncio.Protocol):
    """Sends and receives frames.

    While more than the high-water mark of the transport waits to be sent, `drain` waits. With `reads_always` off,
    nothing is read then: what does not read its answers gets no more of them. The core's end has it off and a front's
    has it on, because two ends that waited for each other would wait for ever.
    """

    def __init__(self, peer: Peer, *, reads_always: bool) -> None:
        self._peer = peer
        self._reads_always = reads_always
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._is_writable = asyncio.Event()
        self._is_writable.set()

    @classmethod
    async def over(cls, sock: socket.socket, peer: Peer, *, reads_always: bool) -> Channel:
        """A channel over one end of a connected pair of stream sockets, which it closes."""
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: cls(peer, reads_always=reads_always), sock=sock)
        return channel

    def send(self, frame: bytes) -> None:
        """Send a frame after those before it; nothing once the connection has ended."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    async def drain(self) -> None:
        """Wait until little is left to send, or the connection has ended."""
        await self._is_writable.wait()

    def close(self) -> None:
        """End the connection when everything is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for kind, payload in self._reader.feed(data):
                self._peer.receive(kind, payload)
        except MalformedFrame as error:
            _log.error("the connection between a front and the core ends, because of a malformed frame: %s", error)
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._is_writable.set()
        self._transport = None
        self._peer.lost()

    def pause_writing(self) -> None:
        self._is_writable.clear()
        if self._transport is not None and not self._reads_always:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._is_writable.set()
        if self._transport is not None and not self._reads_always and not self._transport.is_closing():
            self._transport.resume_reading()
