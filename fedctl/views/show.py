"""Command results, printed: results to stdout, messages for people to stderr. rich loads only for what it draws."""

import json as json_
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedctl.errors import FedctlError
from fedctl.report import StatusReport, report
from fedctl.state import RunState
from fedctl.views.text import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_WORDS: Mapping[str, str] = {
    "ok": "green",
    "ready": "green",
    "done": "green",
    "warning": "yellow",
    "missing": "yellow",
    "failed": "red",
    "lost": "red",
    "error": "red",
}
"""Cells that consist of one of these words are coloured by it."""


def show_json(value: Any) -> None:
    """One JSON document on stdout, in ASCII: no text of a node's can reach the terminal as a control sequence."""
    sys.stdout.write(json_.dumps(value, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def error(error: FedctlError, *, json: bool = False) -> None:
    """An error and the next thing to type, on stderr; with `json` one object on stdout."""
    if json:
        show_json({"error": {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}})
        return
    _say("error", "bold red", error.message)
    if error.hint:
        _say("hint", "bold cyan", error.hint)


def note(message: str) -> None:
    """A message for people, on stderr."""
    _console(stderr=True).print(_paragraph(message), soft_wrap=True)


def show_status(status: StatusReport) -> None:
    """Where a run stands."""
    from fedctl.views.standing import status_lines

    _draw(lambda width: status_lines(status, width))


def show_summary(state: RunState) -> None:
    """What came of a run that a live dashboard has not already shown."""
    show_status(report(state, alive=False))


def show_rows(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None, wrapped: int = -1
) -> None:
    """A table of words; the column at `wrapped` takes what the others leave of the line, and wraps."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, title_justify="left", header_style="dim")
    for index, column in enumerate(columns):
        wraps = index == wrapped % len(columns)
        table.add_column(Text(column), no_wrap=not wraps, overflow="fold" if wraps else "ellipsis")
    for one in rows:
        table.add_row(*(Text(plain(cell), _WORDS.get(cell, "")) for cell in one))
    console = _console()
    if title:
        console.print(Text(plain(title), "bold"))
    console.print(table)


def show_pairs(pairs: Sequence[tuple[str, str]], *, title: str | None = None) -> None:
    """Labels and their values, such as the plan of a dry run."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in pairs:
        table.add_row(Text(plain(label), "dim"), Text(plain(value)))
    console = _console()
    if title:
        console.print(Text(plain(title), "bold"))
    console.print(table)


def _say(label: str, style: str, message: str) -> None:
    from rich.text import Text

    line = Text.assemble((f"{label}:", style), " ", _paragraph(message))
    _console(stderr=True).print(line, soft_wrap=True)


def _paragraph(message: str) -> "Text":
    """A message of our own may have lines; what it quotes of a node's may not drive the terminal."""
    from rich.text import Text

    return Text("\n".join(" " * (len(line) - len(line.lstrip())) + plain(line) for line in message.splitlines()))


def _draw(draw: Callable[[int], "Sequence[Text]"]) -> None:
    from fedctl.views.canvas import Drawing

    _console().print(Drawing(draw))


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False)
