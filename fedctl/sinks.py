"""The sink that every run has: telemetry into `metrics.jsonl`. Losing that file loses nothing."""

from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from fedctl.events import Event
from fedctl.state import RunState
from fedctl.telemetry import Telemetry, dump


class MetricsSink:
    """Appends a line a sample: its time and what Lightning reported."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def event(self, event: Event, state: RunState) -> None:
        """Facts stand in the journal; nothing of them is repeated here."""

    def progress(self, progress: Telemetry) -> None:
        self._file.write(dump(progress, datetime.now(UTC)) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
