"""A host: the machine behind one or more nodes, with one agent and one worker for all of them.

Owns the connection and its renewal, what the machine needs (bundle, worker) and one task's way through it. Knows
nothing of rounds, strategies or the journal.
"""

import itertools
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from fedctl.connection import LINE_LOST, Connection
from fedctl.errors import ConnectionLost, NodeError
from fedctl.events import Traffic
from fedctl.records import Blob, Progress, Result, Task, TaskKey
from fedctl.rundir import digest
from fedctl.transports import Transport

IDLE_S = 300.0
"""How long a worker stays after its last task."""
RECONNECTS = 6
LONGEST_REST_S = 30.0
PIECE = 4 * 2**20

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a run asks of every host: its name and identity, its bundle, and how to start a worker."""

    run: str
    identity: str
    bundle: Blob
    bundle_path: Path
    preload: Sequence[str]
    cwd: str


@dataclass(slots=True)
class Done:
    """A task's result and what it cost on the line."""

    result: Result
    traffic: Traffic = field(default_factory=Traffic)


class Host:
    """One machine, as one user."""

    def __init__(self, transport: Transport, *, python: str, slots: int, work: Work) -> None:
        self._transport = transport
        self._python = python
        self._slots = slots
        self._work = work
        self._connection: Connection | None = None
        self._connecting = threading.Lock()
        self._sending: dict[str, threading.Lock] = {}
        self._sent: set[tuple[Connection, str]] = set()
        self._cancelled: set[TaskKey] = set()
        self._is_prepared = False
        self._is_closed = False

    def connection(self) -> Connection:
        """The line to the agent, made or renewed where it has to be; raises NodeError."""
        with self._connecting:
            if self._is_closed:
                raise NodeError("the host was closed")
            if self._connection is None or self._connection.is_lost:
                self._connection = Connection.open(self._transport, self._python)
            return self._connection

    def facts(self) -> Mapping[str, Any]:
        """What the agent says of the machine now."""
        return self.connection().ask("hello")

    def prepare(self) -> Mapping[str, Any]:
        """Make the machine ready: agent, bundle, and a worker that begins to import. Returns the agent's facts."""

        def attempt() -> Mapping[str, Any]:
            connection = self.connection()
            with self._lock_of("prepare"):
                if not self._is_prepared:
                    self._put(connection, self._work.bundle, self._work.bundle_path)
                    connection.ask("unpack", digest=self._work.bundle.digest)
                    self._ask("worker", worker=self._worker())
                    self._is_prepared = True
            return connection.facts

        return self._patiently(attempt, tries=RECONNECTS)

    def perform(
        self,
        task: Task,
        models: Mapping[str, Path],
        *,
        started: Callable[[], None],
        progressed: Callable[[Progress], None],
    ) -> Done:
        """Have a task done, through broken lines for as long as it takes; raises NodeError once it is cancelled."""
        sent = 0

        def attempt() -> Result:
            nonlocal sent
            connection = self.connection()
            sent += self._put_models(connection, task, models)
            return self._follow(connection, task, started, progressed)

        return Done(result=self._patiently(attempt, key=task.key), traffic=Traffic(sent=sent))

    def fetch_update(self, key: TaskKey, blob: Blob, target: Path) -> int:
        """Bring a task's update here, verified by its digest; returns the bytes that came."""
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        part.unlink(missing_ok=True)
        came = 0
        with part.open("wb") as file:
            while came < blob.size:
                answer, piece = self._read(key, "update.safetensors", came)
                if not piece or answer.get("size") != blob.size:
                    raise NodeError(f"the node's update is not of the {blob.size} bytes that it announced")
                file.write(piece)
                came += len(piece)
        if digest(part) != blob:
            part.unlink()
            raise NodeError("the update's bytes are not those that were announced")
        part.rename(target)
        return came

    def read_log(self, key: TaskKey, offset: int) -> bytes:
        """A task's log from `offset` on."""
        pieces = []
        while piece := self._read(key, "train.log", offset)[1]:
            pieces.append(piece)
            offset += len(piece)
        return b"".join(pieces)

    def release(self, keys: Iterable[TaskKey], digests: Iterable[str] = ()) -> None:
        """The updates of these tasks are safe here and these models are needed no more."""
        gone = set(digests)
        self._sent = {(connection, digest) for connection, digest in self._sent if digest not in gone}
        self._ask("release", keys=[str(key) for key in keys], digests=sorted(gone))

    def cancel(self, key: TaskKey) -> None:
        """Stop a task."""
        self._cancelled.add(key)
        self._ask("cancel", key=str(key))

    def tasks(self) -> Mapping[str, Any]:
        """The run's tasks on this machine and their states."""
        return self._ask("list")

    def probe(self, packages: Sequence[str]) -> Mapping[str, Any]:
        """The version of Python and of packages in the environment that tasks would use."""
        return self.connection().ask("probe", python=self._python, packages=list(packages))

    def stop(self) -> None:
        """End the run's worker and whatever it does."""
        self._ask("stop")

    def remove(self, digests: Iterable[str]) -> None:
        """End the run's worker and remove what the run left on this machine."""
        self._ask("remove", digests=list(digests))

    def close(self) -> None:
        """Close the line; what runs on the machine goes on."""
        self._is_closed = True
        if self._connection:
            self._connection.close()

    def _follow(
        self,
        connection: Connection,
        task: Task,
        started: Callable[[], None],
        progressed: Callable[[Progress], None],
    ) -> Result:
        key = str(task.key)
        pushes: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        connection.listen(key, pushes.put)
        try:
            answer = connection.ask("start", **self._run(), key=key, task=task.to_json(), worker=self._worker())
            if "missing" in answer:
                self._sent -= {(connection, digest) for digest in answer["missing"]}
                if self._work.bundle.digest in answer["missing"]:
                    self._is_prepared = False
                    self.prepare()
                raise ConnectionLost("what the task needs is no longer on the node")
            started()
            if answer.get("state") == "done":
                return _result(task.key, answer.get("result"))
            while True:
                push = pushes.get()
                match push.get("push"):
                    case "progress":
                        progressed(_progress(task.key, push.get("progress")))
                    case "result":
                        return _result(task.key, push.get("result"))
                    case _ if push is LINE_LOST:
                        raise ConnectionLost("the line broke")
        finally:
            connection.unlisten(key)

    def _put_models(self, connection: Connection, task: Task, models: Mapping[str, Path]) -> int:
        return sum(self._put(connection, blob, models[label]) for label, blob in task.models.items())

    def _put(self, connection: Connection, blob: Blob, path: Path) -> int:
        """Send a blob unless this line has sent it before; the agent says so where it has gone since."""
        with self._lock_of(blob.digest):
            if (connection, blob.digest) in self._sent:
                return 0
            sent = connection.put(blob, path)
            self._sent.add((connection, blob.digest))
            return sent

    def _lock_of(self, name: str) -> threading.Lock:
        with self._connecting:
            return self._sending.setdefault(name, threading.Lock())

    def _read(self, key: TaskKey, name: str, offset: int) -> tuple[dict[str, Any], bytes]:
        def attempt() -> tuple[dict[str, Any], bytes]:
            request = {**self._run(), "key": str(key), "name": name, "offset": offset, "limit": PIECE}
            return self.connection().ask_for_bytes("read", **request)

        return self._patiently(attempt, tries=RECONNECTS)

    def _patiently(
        self, attempt: Callable[[], Answer], *, tries: int | None = None, key: TaskKey | None = None
    ) -> Answer:
        """What an attempt gives, made again over a new line when one breaks; without `tries` until it is cancelled.

        Raises ConnectionLost in the end.
        """
        for retry in itertools.count(1):
            try:
                return attempt()
            except ConnectionLost:
                if self._is_closed or key in self._cancelled or retry == tries:
                    raise
                time.sleep(min(LONGEST_REST_S, 0.1 * 2 ** min(retry, 10)) * random.uniform(0.5, 1.0))
        raise AssertionError("counted to the end")

    def _ask(self, op: str, **fields: Any) -> dict[str, Any]:
        return self.connection().ask(op, **self._run(), **fields)

    def _run(self) -> dict[str, Any]:
        return {"run": self._work.run, "identity": self._work.identity}

    def _worker(self) -> dict[str, Any]:
        return {
            "python": self._python,
            "bundle": self._work.bundle.digest,
            "preload": list(self._work.preload),
            "slots": self._slots,
            "idle_s": IDLE_S,
            "cwd": self._work.cwd,
        }


def _result(key: TaskKey, value: object) -> Result:
    try:
        result = Result.from_json(value)
    except ValueError as error:
        raise NodeError(f"the node's result is not one: {error}") from error
    if result.key != key:
        raise NodeError(f"the node answered for {result.key}")
    return result


def _progress(key: TaskKey, value: object) -> Progress:
    try:
        progress = Progress.from_json(value)
    except ValueError:
        return Progress(key=key, phase="waiting")
    return replace(progress, key=key)  # a node speaks for its own task only
