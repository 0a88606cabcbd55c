"""Typer's commands without Typer's check of texts, paths and flags, so that the fast ones start fast.

That check loads pydantic, which takes longer than all the rest of `fedctl status`. Another release of Typer that has no
such check is left as it is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup


class _Verbatim:
    """Takes a parameter as it was typed, which is all that a text, a path or a flag needs."""

    def __init__(self, kind: type[str | Path | bool]) -> None:
        self._kind = kind

    def coerce(self, value: Any, **_: object) -> Any:
        return value if value is None else self._kind(value)


def _take_verbatim(params: Sequence[Any]) -> None:
    """Spare these Typer's own check: it loads pydantic, which would double the start of `status`."""
    for param in params:
        kind = getattr(getattr(param, "type_descriptor", None), "annotation", None)
        if kind in (str, Path, bool) and getattr(param, "_runtime_param", "absent") is None:
            param._runtime_param = _Verbatim(kind)  # noqa: SLF001  (another Typer has no such thing, and needs none)


class Command(TyperCommand):
    """A command whose texts, paths and flags are taken verbatim."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _take_verbatim(self.get_params(ctx))
        return super().parse_args(ctx, args)


class Group(TyperGroup):
    """The command above the commands, likewise."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _take_verbatim(self.get_params(ctx))
        return super().parse_args(ctx, args)
