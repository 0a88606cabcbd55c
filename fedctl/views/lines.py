"""A sink for pipes, CI and logs: one plain sentence for each event, written at once. Loads nothing of rich."""

import sys
import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import ClassVar, Self, TextIO

from fedctl.events import Event, ModelEvaluated, TaskStarted, UpdateReceived
from fedctl.records import Progress
from fedctl.state import RunState
from fedctl.telemetry import Preparing, Telemetry
from fedctl.views.sentence import is_small, sentence, stamp
from fedctl.views.text import plain
from fedctl.waiting import is_under_way

REST_S = 10.0
"""How long nothing more is said of how a node is made ready, which pip tells in hundreds of lines."""
LONGEST = 160


class LinesSink:
    """Writes `02:31:07 round 3: bob failed (attempt 1): CUDA out of memory`.

    Of telemetry it tells what a person would wait for: nodes out of reach, and how others are made ready.
    """

    is_live: ClassVar[bool] = False

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream: TextIO | None = stream or sys.stdout
        self._clock = clock
        self._state = RunState()
        self._unreachable: set[str] = set()
        self._said: dict[str, tuple[float, str]] = {}

    def event(self, event: Event, state: RunState) -> None:
        self._state = state
        if is_small(event):
            return
        if isinstance(event, TaskStarted | UpdateReceived | ModelEvaluated):
            self._reach(event.task.node)
        self._write(f"{stamp(event)} {sentence(event, state)}\n")

    def progress(self, progress: Telemetry) -> None:
        match progress:
            case Preparing(node=node, text=text):
                known = self._state.nodes.get(node)
                if known is None or known.status != "ready":  # of one that is, it is an old note, read by a watcher
                    self._prepare(node, text)
            case Progress(key=key) if not is_under_way(self._state, key):
                pass
            case Progress(key=key, phase="unreachable") if key.node not in self._unreachable:
                self._unreachable.add(key.node)
                self._say(f"{key.node} is unreachable; what it does goes on there")
            case Progress(key=key, phase=phase) if phase != "unreachable":
                self._reach(key.node)
            case _:
                pass

    def _reach(self, node: str) -> None:
        if node in self._unreachable:
            self._unreachable.remove(node)
            self._say(f"{node} is back")

    def _prepare(self, node: str, text: str) -> None:
        now, (at, said) = self._clock(), self._said.get(node, (-REST_S, ""))
        if text != said and now - at >= REST_S:
            self._said[node] = now, text
            self._say(f"{node}: {text}")

    def _say(self, text: str) -> None:
        self._write(f"{datetime.now().astimezone():%H:%M:%S} {plain(text)[:LONGEST]}\n")

    def _write(self, line: str) -> None:
        if self._stream is None:
            return
        encoding = self._stream.encoding or "utf-8"
        try:
            self._stream.write(line.encode(encoding, "replace").decode(encoding))
            self._stream.flush()
        except BrokenPipeError:  # the reader has left; the run goes on without one
            self._stream = None

    def close(self) -> None:
        """Nothing is held back: each line was flushed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
