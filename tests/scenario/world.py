"""A world for whole runs: nodes that train nothing, on a clock of their own, while coordinators come and go.

`World` is what outlives a coordinator: the nodes' tasks, each done at most once, and the time. `FakeHost` is one node
as the coordinator sees it. Everything else of a run is real: plan, journal, files, strategy.
"""

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from fedctl import coordinator, durable, journal, rundir, weights
from fedctl.coordinator import Coordinator
from fedctl.errors import Declined, LoginError, NodeError, Unreachable
from fedctl.eventlines import dump
from fedctl.events import Event
from fedctl.federation import Federation, Monitor, Named, Node, Schedule, TaskSpec, When
from fedctl.host import Done
from fedctl.journal import Journal
from fedctl.records import COORDINATOR, Blob, Progress, Result, Score, Task, TaskKey
from fedctl.rundir import RunDir
from fedctl.state import RunState, fold
from fedctl.strategies import build
from fedctl.traffic import Traffic
from tests.unit.runs import START


class Killed(BaseException):
    """The coordinator dies here: no `except Exception` sees it."""


@dataclass
class Work:
    """A task that a node has taken on."""

    result: Result
    ready_at: datetime
    update: bytes | None = None


@dataclass
class World:
    """Nodes by the names in tasks.

    `slow` has the seconds, of the world's clock, that a node's training takes, `far` those before a task gets there;
    `broken` the updates with a NaN in them; `declining` the nodes whose owners say "not now", with the seconds after
    which to ask again; `jitter` seeds how late each answer comes, in a few real milliseconds. At each look at the clock
    `look_s` go by.
    """

    folder: Path
    jitter: int | None = None
    now: datetime = START
    works: dict[TaskKey, Work] = field(default_factory=dict)
    done: list[TaskKey] = field(default_factory=list)
    down: set[str] = field(default_factory=set)
    barred: set[str] = field(default_factory=set)
    failures: dict[tuple[str, int, int], tuple[str, bool]] = field(default_factory=dict)
    always_failing: set[str] = field(default_factory=set)
    broken: set[tuple[str, int]] = field(default_factory=set)
    declining: dict[str, float] = field(default_factory=dict)
    look_s: float = 0.001
    slow: dict[str, float] = field(default_factory=dict)
    far: dict[str, float] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def fail_at(self, node: str, round: int, attempt: int, reason: str = "out of memory", *, retryable=True) -> None:
        self.failures[node, round, attempt] = (reason, retryable)

    def clock(self) -> datetime:
        """The time, a little later at each look."""
        return self.pass_time(self.look_s)

    def pass_time(self, seconds: float) -> datetime:
        with self.changed:
            self.now += timedelta(seconds=seconds)
            self.changed.notify_all()
            return self.now

    def take_on(self, task: Task, models: Mapping[str, Path]) -> Work:
        """Do a task, or find it done: the node's promise is that a key is worked on once."""
        with self.changed:
            if task.key not in self.works:
                self.done.append(task.key)
                work = self._worked(task, models)
                if task.key.kind == "train":
                    work.ready_at = self.now + timedelta(seconds=self.slow.get(task.key.node, 0))
                self.works[task.key] = work
            return self.works[task.key]

    def keys(self, *kinds: str) -> list[TaskKey]:
        """The tasks that were worked on, in order of keys; one that was done twice is there twice."""
        return sorted(key for key in self.done if key.kind in kinds)

    def _worked(self, task: Task, models: Mapping[str, Path]) -> Work:
        key = task.key
        for label, blob in task.models.items():
            assert durable.digest(models[label]) == blob, f"{key} was given another model than {label}"
        failure = self.failures.get((key.node, key.round, key.attempt))
        if key.node in self.always_failing:
            failure = ("the disk is full", True)
        if failure and key.kind == "train":
            return Work(Result(key=key, error=failure[0], retryable=failure[1]), self.now)
        if key.kind in ("evaluate", "compare"):
            scores = {label: _score(blob, key.node) for label, blob in task.models.items()}
            return Work(Result(key=key, scores=scores, seconds=0.1), self.now)
        content = self._update(task, models)
        blob = Blob(digest=hashlib.sha256(content).hexdigest(), size=len(content))
        metrics = {"train_loss": 1 / (1 + key.round)}
        examples = 10 + len(key.node)
        return Work(Result(key=key, update=blob, examples=examples, metrics=metrics, seconds=1.0), self.now, content)

    def _update(self, task: Task, models: Mapping[str, Path]) -> bytes:
        """Weights that follow from the base model, the node and the round, and from nothing else."""
        key, base = task.key, models["base"].read_bytes() if models else b""
        seed = hashlib.sha256(base + f"{task.seed}/{key.node}/{key.round}/{key.kind}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(seed[:4], "big"))
        tensors = {"w": torch.randn(3, 5, generator=generator), "steps": torch.tensor(key.round)}
        if (key.node, key.round) in self.broken:
            tensors["w"][1, 2] = float("nan")
        path = self.folder / f"{key.folder}.safetensors"
        weights.save(path, tensors)
        return path.read_bytes()


def _score(blob: Blob, node: str) -> Score:
    value = int(hashlib.sha256(f"{blob.digest}/{node}".encode()).hexdigest()[:4], 16) / 2**16
    return Score(examples=7, metrics={"val_loss": value})


class FakeHost:
    """One node, as long as one coordinator lives."""

    def __init__(self, world: World, node: str) -> None:
        self._world = world
        self._node = node
        self._is_closed = False

    def prepare(self, told: Callable[[str], None] = lambda _: None, *, when: When | None = None) -> Mapping[str, Any]:
        self._reach()
        return {"cpus": 2}

    def perform(
        self, task: Task, models: Mapping[str, Path], *, started: Callable[[], None], progressed: Callable[..., None]
    ) -> Done:
        self._reach()
        world = self._world
        with world.changed:
            there_at = world.now + timedelta(seconds=world.far.get(self._node, 0))
            world.changed.wait_for(lambda: self._is_closed or world.now >= there_at)
        self._reach()
        work = world.take_on(task, models)
        started()
        progressed(Progress(key=task.key, phase="training"))
        if world.jitter is not None:
            time.sleep(random.Random(f"{world.jitter}/{task.key}").uniform(0, 0.003))
        with world.changed:
            world.changed.wait_for(lambda: self._is_closed or world.now >= work.ready_at or self._node in world.down)
        self._reach()
        return Done(result=work.result, traffic=Traffic(sent=100))

    def fetch_update(self, key: TaskKey, blob: Blob, target: Path) -> int:
        self._reach()
        content = self._world.works[key].update
        if content is None:
            raise NodeError("the update is no longer there")
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{blob.digest[:12]}.part")
        part.write_bytes(content)
        part.rename(target)
        return len(content)

    def release(self, keys: Iterable[TaskKey], digests: Iterable[str] = ()) -> None:
        self._reach()
        for key in keys:
            self._world.works[key].update = None

    def cancel(self, key: TaskKey) -> None:
        self._reach()
        with self._world.changed:
            if (work := self._world.works.get(key)) and work.ready_at > self._world.now:
                work.result = Result(key=key, error="it was cancelled")
                work.ready_at = self._world.now
                self._world.changed.notify_all()

    def close(self) -> None:
        with self._world.changed:
            self._is_closed = True
            self._world.changed.notify_all()

    def _reach(self) -> None:
        if self._is_closed:
            raise NodeError("the host was closed")
        if self._node in self._world.down:
            raise Unreachable("no route to host")
        if self._node in self._world.barred:
            raise LoginError("permission denied")
        if self._node in self._world.declining:
            raise Declined("outside its hours", seconds=self._world.declining[self._node])


class FakeHosts:
    """All nodes, each a host of its own."""

    def __init__(self, world: World, federation: Federation) -> None:
        self._hosts = {name: FakeHost(world, name) for name in (*(n.name for n in federation.nodes), COORDINATOR)}

    def of(self, node: str) -> FakeHost:
        return self._hosts[node]

    def by_machine(self) -> dict[str, FakeHost]:
        return self._hosts

    def close(self) -> None:
        for host in self._hosts.values():
            host.close()


class Watch:
    """A sink that keeps what it was told, and does what is wanted at an event."""

    def __init__(self, at: Callable[[Event], None] = lambda event: None) -> None:
        self.events: list[Event] = []
        self.state = RunState()
        self._at = at

    def event(self, event: Event, state: RunState) -> None:
        self.events.append(event)
        self.state = state
        self._at(event)

    def progress(self, progress: Progress) -> None:
        pass


class Dying(Journal):
    """A journal whose writer dies once `left` more events are on the disk, with `torn` of the next line written."""

    left = 0
    torn = 0.0

    def append(self, batch: Iterable[Event]) -> None:
        events = list(batch)
        super().append(events[: self.left])
        if len(events) <= self.left:
            type(self).left -= len(events)
            return
        line = dump(events[self.left]).encode() + b"\n"
        self._file.write(line[: int(self.torn * len(line))])
        raise Killed


def dying(after: int, torn: float = 0.0) -> type[Dying]:
    return type("DyingAfter", (Dying,), {"left": after, "torn": torn})


def dying_before(kind: type[Event]) -> type[Journal]:
    """A journal whose writer dies before an event of that kind, and what comes with it, is written."""

    class DyingBefore(Journal):
        def append(self, batch) -> None:
            events = list(batch)
            if of_kind(events, kind):
                raise Killed
            super().append(events)

    return DyingBefore


class Killer(Watch):
    """A sink that dies at the `nth` event that it is told."""

    def __init__(self, nth: int) -> None:
        super().__init__()
        self._nth = nth

    def event(self, event: Event, state: RunState) -> None:
        super().event(event, state)
        if len(self.events) == self._nth:
            raise Killed


def federation(*names: str, rounds: int = 2, strategy: str = "fedavg", **more: Any) -> Federation:
    schedule = Schedule(**{key: more.pop(key) for key in Schedule.__slots__ if key in more})
    return Federation(
        name="toy",
        folder=Path(),
        task=TaskSpec(
            model="model.py:Net", data="data.py:Data", trainer={"max_epochs": 1}, monitor=Monitor(metric="val_loss")
        ),
        nodes=tuple(Node(name=name) for name in names),
        seed=7,
        rounds=rounds,
        strategy=Named(name=strategy),
        schedule=schedule,
        **more,
    )


class Scene:
    """A federation, a world and a run's folder, in which coordinators may be started one after another."""

    def __init__(self, folder: Path, federation: Federation, **world: Any) -> None:
        self.federation = federation
        folder.mkdir(parents=True, exist_ok=True)
        nodes = folder / "nodes"
        nodes.mkdir()
        self.world = World(folder=nodes, **world)
        self.run: RunDir = rundir.create(folder, "toy", configuration="", bundle=b"", facts={})

    def go(
        self, *sinks: Watch, hold: bool = False, writer: type[Journal] = Journal, federation: Federation | None = None
    ) -> RunState:
        """Run a coordinator to its end, or to its death, and wait until nothing of it moves any more."""
        described = federation or self.federation
        hosts, before, original = FakeHosts(self.world, described), set(threading.enumerate()), coordinator.Journal
        coordinator.Journal = writer
        try:
            with self.run.lock() as lease:
                return Coordinator(
                    federation=described,
                    run=self.run,
                    lease=lease,
                    hosts=hosts,
                    strategy=build(described.strategy),
                    sinks=sinks,
                    hold=hold,
                    clock=self.world.clock,
                ).run()
        finally:
            coordinator.Journal = original
            hosts.close()
            for thread in set(threading.enumerate()) - before:
                thread.join(timeout=20)

    def dies(self, *sinks: Watch, **more: Any) -> bool:
        """Whether the coordinator died before the run was over."""
        try:
            self.go(*sinks, **more)
        except Killed:
            return True
        return False

    @property
    def state(self) -> RunState:
        """What the journal alone says."""
        return fold(self.events)

    @property
    def events(self) -> list[Event]:
        return journal.read(self.run.journal)

    def leftovers(self) -> list[Path]:
        """Files that no calm run leaves: half-written ones."""
        return [path for path in self.run.path.rglob("*") if ".tmp-" in path.name or path.name.endswith(".part")]

    def outcome(self, state: RunState) -> dict[str, Any]:
        """What must not depend on how often the coordinator died: models to the bit, tasks, answers."""
        models = sorted(self.run.path.glob("rounds/*/m*.safetensors")) + sorted(self.run.path.glob("alone/*"))
        return {
            "status": state.status,
            "model": state.model,
            "published": durable.digest(self.run.model),
            "files": {str(path.relative_to(self.run.path)): durable.digest(path) for path in models},
            "tasks": self.world.keys("initialize", "train", "alone", "compare"),
            "rounds": [
                replace(r, opened_at=START, closed_at=START, answered_s={}, line_seconds={}, bytes=Traffic())
                for r in state.history
            ],
            "alone": state.alone,
            "compared": state.compared,
            "scores": state.evaluations.get(state.round),
        }


def of_kind(events: Sequence[Event], kind: type[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]
