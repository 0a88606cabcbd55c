"""A host: the machine behind one or more nodes, with one agent and one worker for all of them.

Owns the connection and its renewal, what the machine needs (bundle, worker) and one task's way through it. Knows
nothing of rounds, strategies or the journal.
"""

import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from fedctl import transfer
from fedctl.connection import LINE_LOST, Connection, Waiter
from fedctl.delivery import Delivery
from fedctl.environment import Environment, Given
from fedctl.errors import ConnectionLost
from fedctl.federation import When
from fedctl.ledger import Pin, Statement
from fedctl.lifeline import RECONNECTS, RETRIES, Lifeline
from fedctl.pace import Bandwidth
from fedctl.preparation import Preparation, Prepared, Told, silent
from fedctl.records import Blob, Progress, Result, Task, TaskKey
from fedctl.replies import heed, pin_of, progress_of, result_of
from fedctl.statement import statement_of
from fedctl.traffic import Traffic
from fedctl.transports import Transport

IDLE_S = 300.0
"""How long a worker stays after its last task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a run asks of every host: its name and identity, its bundle, and how to start a worker.

    `environments` are by node; one that is not there uses its host's Python as it is.
    """

    run: str
    identity: str
    bundle: Blob
    bundle_path: Path
    preload: Sequence[str]
    cwd: str
    environments: Mapping[str, Environment | Given] = field(default_factory=dict)


@dataclass(slots=True)
class Done:
    """A task's result, its entry in the node's ledger, and what it cost on the line: its models took `line_s`."""

    result: Result
    ledger: Pin | None = None
    traffic: Traffic = field(default_factory=Traffic)
    line_s: float = 0.0


class Host:
    """One machine, as one user."""

    def __init__(
        self,
        transport: Transport,
        *,
        python: str,
        slots: int,
        work: Work,
        home: str = "",
        environment: Environment | Given | None = None,
        bandwidth: Bandwidth | None = None,
    ) -> None:
        self._open = partial(Connection.open, transport, python, home=home, bandwidth=bandwidth)
        self._slots = slots
        self._work = work
        self._hiring = threading.Lock()
        self._delivery = Delivery()
        self._cancelled: set[TaskKey] = set()
        self._preparation = Preparation(work.bundle, work.bundle_path, environment, python, work.identity)
        self._has_worker = False
        self._lifeline = Lifeline(self._connect)

    def connection(self) -> Connection:
        """The line to the agent, made or renewed where it has to be; raises NodeError."""
        return self._lifeline.connection()

    def facts(self) -> Mapping[str, Any]:
        """What the agent says of the machine now."""
        return self.connection().ask("hello")

    def provide(self, told: Told = silent) -> Prepared:
        """Bring to the machine what it lacks, bundle and environment; `told` hears how that goes on."""
        return self._lifeline.patiently(lambda: self._preparation.over(self.connection(), told), tries=RECONNECTS)

    def prepare(self, told: Told = silent, *, when: When | None = None) -> Mapping[str, Any]:
        """Make the machine ready, with a worker that begins to import; returns the agent's facts.

        Raises Declined, and changes nothing there, where it is not to be used now.
        """

        def attempt() -> Mapping[str, Any]:
            if when:
                heed(self.connection().ask("may", when=when.to_json()))
            self._preparation.over(self.connection(), told)
            with self._hiring:
                if not self._has_worker:
                    heed(self._ask("worker", worker=self._worker()).get("declined", {"may": True}))
                    self._has_worker = True
            return self.connection().facts

        return self._lifeline.patiently(attempt, tries=RETRIES)

    def perform(
        self,
        task: Task,
        models: Mapping[str, Path],
        *,
        started: Callable[[], None],
        progressed: Callable[[Progress], None],
    ) -> Done:
        """Have a task done, through broken lines while a new one can be had.

        Raises ConnectionLost where none can: what was started goes on there. Raises NodeError once it is cancelled,
        and Declined where the node is not to be used, or not any more: it is to be begun anew then. The seconds that
        a task has count from here: what its models take on the line is not left for its training.
        """
        sent, line_s, asked_at = Traffic(), 0.0, time.monotonic()

        def attempt() -> Done:
            nonlocal sent, line_s
            connection = self.connection()
            self._preparation.over(connection)
            began = time.monotonic()
            try:
                sent += self._delivery.models(connection, task, models)
            finally:
                line_s += time.monotonic() - began
            left_s = task.seconds and max(1.0, task.seconds - (time.monotonic() - asked_at))
            return self._follow(connection, replace(task, seconds=left_s), started, progressed)

        done = self._lifeline.patiently(
            attempt,
            tries=RETRIES,
            is_wanted=lambda: task.key not in self._cancelled,
            broke=lambda: progressed(Progress(key=task.key, phase="unreachable")),
        )
        return replace(done, traffic=sent, line_s=line_s)

    def fetch_update(self, key: TaskKey, blob: Blob, target: Path) -> int:
        """Bring a task's update here, verified by its digest; returns the bytes that came."""

        def attempt() -> None:
            connection = self.connection()
            begin = partial(self._begin_read, connection, key, "update.safetensors")
            ahead = transfer.ahead_of(connection, blob)
            transfer.fetch(begin, blob, target, ahead=ahead, block=connection.block)

        before = kept = transfer.kept(blob, target)
        while True:
            try:
                self._lifeline.patiently(attempt, tries=RECONNECTS)
            except ConnectionLost:  # a line that breaks time and again is a line while it brings something
                if transfer.kept(blob, target) <= kept:
                    raise
                kept = transfer.kept(blob, target)
            else:
                return blob.size - before

    def read_log(self, key: TaskKey, offset: int) -> bytes:
        """The next piece of a task's log, from `offset` on; empty at its end."""

        def attempt() -> bytes:
            connection = self.connection()
            return self._begin_read(connection, key, "train.log", offset, connection.block)()[1]

        return self._lifeline.patiently(attempt, tries=RECONNECTS)

    def ledger(self, *, is_whole: bool) -> Statement:
        """What the node's ledger says of the run; the chain as a whole where that is asked for."""

        def attempt() -> Statement:
            return statement_of(self.connection(), self._work.identity, is_whole=is_whole)

        return self._lifeline.patiently(attempt, tries=RECONNECTS)

    def release(self, keys: Iterable[TaskKey], digests: Iterable[str] = ()) -> None:
        """The updates of these tasks are safe here and these models are needed no more."""
        gone = set(digests)
        self._delivery.forget(gone)
        self._ask("release", keys=[str(key) for key in keys], digests=sorted(gone))

    def cancel(self, key: TaskKey) -> None:
        """Stop a task."""
        self._cancelled.add(key)
        self._ask("cancel", key=str(key))

    def tasks(self) -> Mapping[str, Any]:
        """The run's tasks on this machine and their states."""
        return self._ask("list")

    def stop(self) -> None:
        """End the run's worker and whatever it does."""
        self._ask("stop")

    def remove(self, digests: Iterable[str]) -> None:
        """End the run's worker and remove what the run left on this machine."""
        self._ask("remove", digests=list(digests))

    def stop_all(self, identities: Collection[str], *, force: bool) -> None:
        """End whatever the runs of these identities do there; refused while others are at work, unless by force."""
        self.connection().ask("stop_all", identities=sorted(identities), force=force)

    def remove_all(self) -> None:
        """Remove all that fedctl made on this machine, for any run, the agent included."""
        self.connection().ask("remove_all")

    def close(self) -> None:
        """Close the line; what runs on the machine goes on."""
        self._lifeline.close()

    def _connect(self) -> Connection:
        return self._open(needs=self._preparation.needs)

    def _follow(
        self,
        connection: Connection,
        task: Task,
        started: Callable[[], None],
        progressed: Callable[[Progress], None],
    ) -> Done:
        key = str(task.key)
        ends: queue.Queue[Mapping[str, Any]] = queue.Queue(maxsize=1)

        def hear(push: Mapping[str, Any]) -> None:
            """Of what a node tells nothing piles up here: progress is passed on, and the first end is the end."""
            if push.get("push") == "progress":
                progressed(progress_of(task.key, push.get("progress")))
            elif push is LINE_LOST or push.get("push") in ("result", "missing"):
                with suppress(queue.Full):
                    ends.put_nowait(push)

        connection.listen(key, hear)
        try:
            answer = connection.ask("start", **self._run(), key=key, task=task.to_json(), worker=self._worker())
            if "missing" in answer:
                raise self._missed(connection, task, answer["missing"])
            heed(answer.get("declined", {"may": True}))
            started()
            if answer.get("state") == "done":
                return Done(result_of(task.key, answer.get("result")), pin_of(answer.get("ledger")))
            end = ends.get()
            if end is LINE_LOST:
                raise connection.failure
            if end.get("push") == "missing":
                raise self._missed(connection, task, end.get("missing"))
            return Done(result_of(task.key, end.get("result")), pin_of(end.get("ledger")))
        finally:
            connection.unlisten(key)

    def _missed(self, connection: Connection, task: Task, missing: object) -> ConnectionLost:
        """What a task needs has gone from the node, or was damaged there: it is to be sent again, as after a break."""
        digests = set(map(str, missing)) if isinstance(missing, list) else set()
        models = {blob.digest for blob in task.models.values()}
        self._delivery.missed(connection, digests & models)
        if not digests <= models:
            self._preparation.forget()
        return ConnectionLost("what the task needs is no longer on the node")

    def _begin_read(self, connection: Connection, key: TaskKey, name: str, offset: int, limit: int) -> Waiter:
        request = {**self._run(), "key": str(key), "name": name, "offset": offset, "limit": limit}
        return connection.begin("read", awaited=limit, **request)

    def _ask(self, op: str, **fields: Any) -> dict[str, Any]:
        return self.connection().ask(op, **self._run(), **fields)

    def _run(self) -> dict[str, Any]:
        return {"run": self._work.run, "identity": self._work.identity}

    def _worker(self) -> dict[str, Any]:
        return {
            **self._preparation.interpreter,
            "bundle": self._work.bundle.digest,
            "preload": list(self._work.preload),
            "slots": self._slots,
            "idle_s": IDLE_S,
            "cwd": self._work.cwd,
        }
