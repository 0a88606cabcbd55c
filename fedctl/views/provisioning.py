"""What `provision` shows: a line a node while it goes on, and a table of what came of it."""

import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from fedctl.views.show import note, show_json, show_rows
from fedctl.views.text import clock, duration, files, plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    from fedctl.operations.provision import Outcome, Provisioned

_BORING = ("connecting", "ready")
_NAMED = 3
_LONGEST = 160


class Progress(Protocol):
    """Hears what goes on at the nodes of each machine, from several threads; a context manager."""

    def told(self, nodes: str, line: str) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_progress(*, json: bool) -> Progress:
    """Live on a terminal, else a line an event; with `json` stdout is left to the document."""
    if sys.stdout.isatty() and not json:
        from rich.console import Console

        console = Console(markup=False, highlight=False)
        if console.is_interactive:
            return LiveProgress(console)
    return LinesProgress()


class LinesProgress:
    """Writes `alice: making the environment` to stderr."""

    def told(self, nodes: str, line: str) -> None:
        if line not in _BORING:
            sys.stderr.write(f"{nodes}: {textwrap.shorten(plain(line), _LONGEST, placeholder=' ...')}\n")
            sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Each line was written at once."""


class LiveProgress:
    """A line a machine, redrawn a few times a second; gone at the end, when the table says it all."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._lines: dict[str, str] = {}
        self._live: Live | None = None

    def told(self, nodes: str, line: str) -> None:
        with self._lock:
            self._lines[nodes] = line

    def __enter__(self) -> Self:
        from rich.live import Live

        self._live = Live(console=self._console, get_renderable=self._draw, refresh_per_second=5, transient=True)
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def _draw(self) -> "Table":
        """Where the terminal is too low for all, those that are ready go first."""
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            lines = list(self._lines.items())
        room = max(1, self._console.size.height - 3)
        ready = sum(line == "ready" for _, line in lines)
        if len(lines) > room:
            lines = [pair for pair in lines if pair[1] != "ready"]
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for nodes, line in lines[:room]:
            table.add_row(Text(plain(nodes)), Text(plain(line), "green" if line == "ready" else ""))
        table.add_row(
            Text(clock(time.monotonic() - self._began), "dim"), Text(f"{ready} of {len(self._lines)} ready", "dim")
        )
        return table


def provisioned(done: "Provisioned", *, as_json: bool) -> None:
    """A row for nodes that are alike, then what differs from here and what failed, with its remedy."""
    if as_json:
        show_json(_document(done))
        return
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, one in done.nodes.items():
        rows.setdefault(_cells(one), []).append(name)
    show_rows(["NODE", "CODE", "ENVIRONMENT", "PYTHON"], [[_listed(names), *cells] for cells, names in rows.items()])
    said: dict[str, list[str]] = {}
    for name, one in done.nodes.items():
        said.setdefault("\n".join(_notes(one)), []).append(name)
    for text, names in said.items():
        if text:
            note(f"{_listed(names)}: {text}")
    if done.left_out:
        note(f"left out: {files(done.left_out)}")
    if not done.failed:
        note("every node is ready" if done.changed else "nothing to do: every node is ready")


def _cells(one: "Outcome") -> tuple[str, ...]:
    if one.prepared is None:
        return "", "failed", ""
    ready = one.prepared
    made = f"made in {duration(ready.seconds)}" if ready.environment == "made" else ready.environment
    return ready.bundle, made, ready.python


def _notes(one: "Outcome") -> list[str]:
    if one.prepared is not None:
        return list(one.prepared.notes)
    lines = [f"  {line}" for line in one.detail.splitlines()]
    return [one.error, *lines, *([f"do: {one.remedy}"] if one.remedy else [])]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= _NAMED else f"{names[0]} and {len(names) - 1} more"


def _document(done: "Provisioned") -> dict[str, Any]:
    return {
        "federation": done.federation,
        "changed": done.changed,
        "failed": done.failed,
        "left_out": dict(done.left_out),
        "nodes": [{"name": name, **_fields(one)} for name, one in done.nodes.items()],
    }


def _fields(one: "Outcome") -> dict[str, Any]:
    if one.prepared is None:
        return {"error": {"message": one.error, "hint": one.remedy or None, "detail": one.detail}}
    ready = one.prepared
    return {
        "bundle": ready.bundle,
        "environment": ready.environment,
        "seconds": ready.seconds,
        "python": ready.python,
        "notes": list(ready.notes),
        "error": None,
    }
