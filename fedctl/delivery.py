"""Models on their way to one machine: each goes there once, and only what the machine cannot make of what it has."""

import threading
from collections.abc import Collection, Mapping
from pathlib import Path

from fedctl import transfer
from fedctl.connection import Connection
from fedctl.records import DIFFERENCE, NEWEST, REST, Blob, Task
from fedctl.traffic import Traffic


class Delivery:
    """Remembers what each line to a machine has brought; the agent says so where it has gone since."""

    def __init__(self) -> None:
        self._locking = threading.Lock()
        self._sending: dict[str, threading.Lock] = {}
        self._sent: set[tuple[Connection, str]] = set()
        self._wanted: set[str] = set()

    def models(self, connection: Connection, task: Task, paths: Mapping[str, Path]) -> Traffic:
        """Send what the task needs of its models, whose files are in `paths`, and return what was sent.

        The rest of a model goes only where the machine has said that it cannot build it, and the newest model only
        where the machine has not the one before, to make it of their difference.
        """
        made = {REST, *(NEWEST if self._is_made(connection, task) else [DIFFERENCE])}
        needed = {label for label, blob in task.models.items() if label not in made or blob.digest in self._wanted}
        sent = {label: self._put(connection, task.models[label], paths[label]) for label in sorted(needed)}
        of_newest = sum(task.models[label].size for label in NEWEST if label in task.models)
        raw = {label: of_newest if label == DIFFERENCE and count else count for label, count in sent.items()}
        return Traffic(sent=sum(sent.values()), raw_sent=sum(raw.values()))

    def missed(self, connection: Connection, digests: Collection[str]) -> None:
        """These are not on the machine, or not any more, and what is to be made there could not be."""
        with self._locking:
            self._sent -= {(connection, digest) for digest in digests}
            self._wanted |= set(digests)

    def forget(self, digests: Collection[str]) -> None:
        """The machine no longer has these."""
        with self._locking:
            self._sent = {sent for sent in self._sent if sent[1] not in digests}

    def _is_made(self, connection: Connection, task: Task) -> bool:
        difference = task.models.get(DIFFERENCE)
        if difference is None or task.previous is None:
            return False
        newest = next(blob for label, blob in task.models.items() if label in NEWEST)
        if (connection, newest.digest) in self._sent:
            return False
        if (connection, difference.digest) in self._sent:
            return True
        are_there = transfer.are_whole(connection, [newest.digest, task.previous.digest])
        return newest.digest not in are_there and task.previous.digest in are_there

    def _put(self, connection: Connection, blob: Blob, path: Path) -> int:
        with self._lock_of(blob.digest):
            if (connection, blob.digest) in self._sent:
                return 0
            sent = transfer.put(connection, blob, path)
            with self._locking:
                self._sent.add((connection, blob.digest))
            return sent

    def _lock_of(self, digest: str) -> threading.Lock:
        with self._locking:
            return self._sending.setdefault(digest, threading.Lock())
