"""What goes wrong on the owner's side, as a sentence and the next thing to type."""

from __future__ import annotations

USAGE, CONFIGURATION, STATE = 2, 3, 7


class OwnerError(Exception):
    """Something that the owner asked for cannot be; `code` is the exit code that it ends with."""

    def __init__(self, message: str, hint: str = "", *, code: int = STATE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
