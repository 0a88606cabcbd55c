"""What people see of a run: the live dashboard, plain lines, tables and errors. The only door to rich.

Views know the state, the events and the telemetry, and nothing of the coordinator, of torch or of the disk. Importing
this package loads no rich; only what draws does.
"""

import sys
from types import TracebackType
from typing import ClassVar, Protocol, Self

from fedctl.events import Event
from fedctl.state import RunState
from fedctl.telemetry import Telemetry


class Sink(Protocol):
    """Whoever follows a run. `event` comes after the state has taken it in; none of these may fail the run."""

    is_live: ClassVar[bool]
    """True where the last picture stays on the terminal, so that nothing need be said again."""

    def event(self, event: Event, state: RunState) -> None: ...

    def progress(self, progress: Telemetry) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_sink(*, json: bool = False, watching: bool = False) -> Sink:
    """The sink that fits: live on a terminal, else a line an event; with `json` stdout is left to the document.

    `watching` tells that the run is another process's, and goes on when this one is interrupted.
    """
    from fedctl.views.lines import LinesSink

    if json:
        return LinesSink(sys.stderr)
    if sys.stdout.isatty():
        from rich.console import Console

        from fedctl.views.live import LiveSink

        console = Console(markup=False, highlight=False)
        if console.is_interactive:
            return LiveSink(console, watching=watching)
    return LinesSink(sys.stdout)
