"""The journal on disk: one event a line, append-only, one writer.

Owns syncing, the repair of a torn last line and following a growing file; knows nothing of what events mean.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from shlex import quote
from types import TracebackType
from typing import Self

from fedctl import eventlines
from fedctl.errors import StateError
from fedctl.events import Event


class Journal:
    """The writer's end. Open it only while holding the run's lease.

    `check` raises when this process may not write any more; it is asked before anything is written.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        """Repairs a torn tail; raises StateError when a line before the last is damaged."""
        self._check = check
        self.events, whole = _read(path)
        self.was_torn = whole < path.stat().st_size
        self._file = path.open("ab")
        if self.was_torn:
            self._file.truncate(whole)

    def append(self, batch: Iterable[Event]) -> None:
        """Append events and return when they are on the disk; one sync for all of them."""
        self._check()
        self._file.write(b"".join(eventlines.dump(event).encode() + b"\n" for event in batch))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read(path: Path) -> list[Event]:
    """All events so far; a last line that is torn, or still being written, is left out."""
    return _read(path)[0]


def follow(path: Path) -> Iterator[list[Event]]:
    """The events so far, then whatever has come since, for ever; an empty list when nothing has. The caller waits."""
    offset = lines = 0
    while True:
        fresh, size = _read(path, offset, lines)
        offset, lines = offset + size, lines + len(fresh)
        yield fresh


def _read(path: Path, offset: int = 0, before: int = 0) -> tuple[list[Event], int]:
    """The events from `offset` on, which is behind `before` lines, and how many bytes of the file they take."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read()
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from error
    found: list[Event] = []
    whole = 0
    *lines, torn = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            found.append(_load(line, path, before + number))
        except StateError:
            if number == len(lines) and not torn:
                break
            raise
        whole += len(line) + 1
    return found, whole


def _load(line: bytes, path: Path, number: int) -> Event:
    try:
        return eventlines.load(line.decode())
    except ValueError as error:
        raise StateError(
            f"{path}:{number}: the journal is damaged: {error}",
            hint=f"put the file back from a copy, or cut it there: `sed -i.damaged '{number},$d' {quote(str(path))}`, "
            f"then `fedctl launch --resume {path.parent.name}` does what came after again, from what is still there",
        ) from error
