"""A sink for terminals: the dashboard, redrawn a few times a second, left in the scrollback at the end."""

import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import ClassVar, Self

from rich.console import Console, ConsoleRenderable, RenderableType
from rich.control import Control
from rich.live import Live

from fedctl.events import Event, ModelEvaluated, TaskFailed, UpdateReceived
from fedctl.records import Progress
from fedctl.state import RunState
from fedctl.telemetry import Preparing, Telemetry
from fedctl.views.dashboard import dashboard
from fedctl.views.sentence import is_routine

_FRAMES_A_SECOND = 5
_SHARE_OF_TIME = 0.1
_TALLEST = 60
"""The last picture may be longer than the terminal; it stays in the scrollback."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class LiveSink:
    """Keeps the newest state and telemetry; a thread of rich draws them. Use it as a context manager.

    A run ends with the sink of its own coordinator; one that is only `watching` may be interrupted while it goes on.
    """

    is_live: ClassVar[bool] = True

    def __init__(self, console: Console, *, watching: bool = False, now: Callable[[], datetime] = _utc_now) -> None:
        self._console = console
        self._is_watching = watching
        self._now = now
        self._lock = threading.Lock()
        self._state = RunState()
        self._progress: dict[str, Progress] = {}
        self._preparing: dict[str, str] = {}
        self._recent: deque[Event] = deque(maxlen=12)
        self._is_closed = False
        self._is_alive = True
        self._picture: RenderableType = ""
        self._fresh_until = 0.0
        self._live = _Live(
            console=console,
            get_renderable=self._draw,
            refresh_per_second=_FRAMES_A_SECOND,
            vertical_overflow="crop",
        )

    def event(self, event: Event, state: RunState) -> None:
        with self._lock:
            self._state = state
            if isinstance(event, UpdateReceived | ModelEvaluated | TaskFailed):
                self._progress.pop(str(event.task), None)
            if not is_routine(event):
                self._recent.append(event)

    def progress(self, progress: Telemetry) -> None:
        with self._lock:
            if isinstance(progress, Preparing):
                self._preparing[progress.node] = progress.text
            else:
                self._progress[str(progress.key)] = progress

    def close(self) -> None:
        """Draw the last picture, of a run that has ended, and give the terminal back; a second call does nothing."""
        self._close(is_alive=False)

    def _close(self, *, is_alive: bool) -> None:
        if not self._is_closed:
            self._is_closed, self._is_alive = True, is_alive
            self._live.stop()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(is_alive=self._is_watching and error is not None)

    def _draw(self) -> RenderableType:
        """The picture of now; drawing many nodes is dear, so it takes no more than its share of the time."""
        began = time.monotonic()
        if began < self._fresh_until and not self._is_closed:
            return self._picture
        with self._lock:
            state, progress, recent = self._state, dict(self._progress), tuple(self._recent)
            preparing = dict(self._preparing)
        if not state.run:
            return ""
        height = self._console.size.height - 1
        self._picture = dashboard(
            state,
            progress,
            recent,
            self._now(),
            preparing=preparing,
            alive=self._is_alive,
            height=max(height, _TALLEST) if self._is_closed else height,
        )
        self._fresh_until = began + (time.monotonic() - began) / _SHARE_OF_TIME
        return self._picture


class _Live(Live):
    """Clears the screen when the terminal's width has changed: old lines are wrapped by then and cannot be erased."""

    _width: int | None = None

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        drawn = super().process_renderables(renderables)
        before, self._width = self._width, self.console.width
        if before not in (None, self._width) and self.console.is_interactive:
            return [Control.clear(), Control.home(), *drawn[1:]]
        return drawn
