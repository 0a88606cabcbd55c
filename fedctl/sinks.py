"""The sink that every run has: telemetry into `metrics.jsonl`. Losing that file loses nothing.

However much the nodes tell and however long they do, it stays bounded: a full file is put aside, in the place of the
one that was put aside before it.
"""

from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from fedctl.events import Event
from fedctl.state import RunState
from fedctl.telemetry import Telemetry, dump

MOST_BYTES = 256 * 2**20
LONGEST_LINE = 2**14
"""A sample with hundreds of metrics is shorter."""


class MetricsSink:
    """Appends a line a sample: its time and what Lightning reported."""

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        self._path = path
        self._most = most_bytes
        self._file = path.open("a", buffering=1)
        self._size = self._file.tell()

    def event(self, event: Event, state: RunState) -> None:
        """Facts stand in the journal; nothing of them is repeated here."""

    def progress(self, progress: Telemetry) -> None:
        line = dump(progress, datetime.now(UTC)) + "\n"  # ASCII
        if len(line) > LONGEST_LINE:
            return
        if self._size + len(line) > self._most:
            self._file.close()
            self._path.replace(self._path.with_name(f"{self._path.name}.old"))
            self._file, self._size = self._path.open("a", buffering=1), 0
        self._file.write(line)
        self._size += len(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
