"""uvicorn's flow control of one connection, which can be held: ASGI apps then cannot resume the reading."""

from __future__ import annotations

from uvicorn.protocols.http.flow_control import FlowControl


class HoldableFlow(FlowControl):
    """uvicorn's flow control, in which a held connection is not read whoever asks for it."""

    is_held = False

    def hold(self) -> None:
        """Do not read until `release`."""
        self.is_held = True
        self.pause_reading()

    def release(self) -> None:
        """Read."""
        self.is_held = False
        self.resume_reading()

    def resume_reading(self) -> None:
        if not self.is_held:
            super().resume_reading()
