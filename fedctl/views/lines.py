"""A sink for pipes, CI and logs: one plain sentence for each event, written at once. Loads nothing of rich."""

import sys
from types import TracebackType
from typing import ClassVar, Self, TextIO

from fedctl.events import Event
from fedctl.records import Progress
from fedctl.state import RunState
from fedctl.views.sentence import sentence, stamp


class LinesSink:
    """Writes `02:31:07 round 3: bob failed (attempt 1): CUDA out of memory`; progress makes no lines."""

    is_live: ClassVar[bool] = False

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream: TextIO | None = stream or sys.stdout

    def event(self, event: Event, state: RunState) -> None:
        if self._stream is None:
            return
        line = f"{stamp(event)} {sentence(event, state)}\n"
        encoding = self._stream.encoding or "utf-8"
        try:
            self._stream.write(line.encode(encoding, "replace").decode(encoding))
            self._stream.flush()
        except BrokenPipeError:  # the reader has left; the run goes on without one
            self._stream = None

    def progress(self, progress: Progress) -> None:
        """Telemetry is for the dashboard."""

    def close(self) -> None:
        """Nothing is held back: each line was flushed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
