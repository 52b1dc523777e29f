"""How a command ends the program with one line."""

from __future__ import annotations


class CommandFailed(Exception):
    """The command cannot run. `main` prints the message as one line and exits with the code."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
