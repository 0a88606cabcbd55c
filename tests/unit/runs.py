"""Made-up runs, told as events: what the coordinator would have journalled."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from fedctl.events import (
    Event,
    ModelEvaluated,
    ModelInitialized,
    NodeLost,
    NodeReady,
    RoundAggregated,
    RoundOpened,
    RunFinished,
    RunStarted,
    TaskFailed,
    TaskStarted,
    UpdateReceived,
)
from fedctl.records import COORDINATOR, Blob, Kind, Phase, Progress, Score, TaskKey
from fedctl.state import RunState, apply
from fedctl.traffic import Traffic

START = datetime(2026, 11, 22, 2, 30, tzinfo=UTC)
SIZE = 1_240_000
NAMES = ("alice", "bob", "carol", "dave", "erin")


class Story:
    """A run of `nodes` told step by step; every event comes a second after the last one."""

    def __init__(
        self,
        *nodes: str,
        rounds: int = 10,
        compare: bool = False,
        personal: bool = False,
        metric: str = "val_acc",
        mode: str = "max",
        **more: Any,
    ) -> None:
        self.nodes = nodes or NAMES[:3]
        self.personal = personal
        self.rounds = rounds
        self.metric = metric
        self.compare = compare
        self.mode = mode
        self.events: list[Event] = []
        self.state = RunState()
        self.progress: dict[str, Progress] = {}
        self.now = START
        self._started(**more)

    def tell(self, kind: type[Event], *, after: float = 1.0, **fields: Any) -> None:
        self.now += timedelta(seconds=after)
        self.events.append(kind(at=self.now, **fields))
        self.state = apply(self.state, self.events[-1])

    def _started(self, **more: Any) -> None:
        self.tell(
            RunStarted,
            after=0,
            run="digits-20261122-023000",
            federation="digits",
            seed=7,
            rounds=self.rounds,
            nodes=self.nodes,
            compare=self.compare,
            metric=self.metric,
            mode=self.mode,
            **more,
        )

    def resumed(self, *, after: float = 600.0, **more: Any) -> None:
        self.now += timedelta(seconds=after)
        self._started(**more)
        self.ready()

    def ready(self, *names: str) -> None:
        for name in names or self.nodes:
            self.tell(NodeReady, after=0.5, node=name)

    def lost(self, name: str, reason: str = "no route to host", **more: Any) -> None:
        self.tell(NodeLost, node=name, reason=reason, **more)

    def built(self, forecast: Traffic | None = None) -> None:
        self.tell(TaskStarted, task=TaskKey(round=0, node=COORDINATOR, kind="initialize"))
        self.tell(ModelInitialized, after=3, model=blob("0"), forecast=forecast)

    def opened(self, round: int, **more: Any) -> None:
        self.tell(RoundOpened, after=0.2, round=round, nodes=self.nodes, **more)

    def started(self, round: int, name: str, kind: Kind = "train", attempt: int = 1) -> None:
        self.tell(TaskStarted, after=0.3, task=TaskKey(round=round, node=name, kind=kind, attempt=attempt))

    def trained(
        self, round: int, name: str, kind: Kind = "train", attempt: int = 1, after: float = 2.0, **more: Any
    ) -> None:
        key = TaskKey(round=round, node=name, kind=kind, attempt=attempt)
        loss, traffic = 1.2 / (round + 1), Traffic(sent=SIZE, received=SIZE)
        self.tell(
            UpdateReceived,
            after=after,
            task=key,
            update=blob(name[0] if name[0] in "abcdef" else "f"),
            examples=600 + 137 * self.nodes.index(name),
            metrics={"train_loss": loss},
            seconds=after + 9.4,
            **{"bytes": traffic, **more},
        )

    def failed(
        self, round: int, name: str, reason: str = "CUDA out of memory", *, attempt: int = 1, **more: Any
    ) -> None:
        kind = more.pop("kind", "train")
        key = TaskKey(round=round, node=name, kind=kind, attempt=attempt)
        self.tell(TaskFailed, task=key, reason=reason, **{"retryable": True, **more})

    def evaluated(
        self, round: int, name: str, value: float, *, personal: float | None = None, examples: int = 100
    ) -> None:
        metrics = {self.metric: value, "val_loss" if self.metric != "val_loss" else "val_acc": 0.4}
        scores = {"global": Score(examples=examples, metrics=metrics)}
        if personal is not None:
            scores["personal"] = Score(examples=examples, metrics={**metrics, self.metric: personal})
        self._scored(TaskKey(round=round, node=name, kind="evaluate"), scores)

    def finetuned(self, name: str, value: float, personal: float, *, examples: int = 100) -> None:
        values = {"global": value, "personal": personal}
        scores = {label: Score(examples=examples, metrics={self.metric: each}) for label, each in values.items()}
        self._scored(TaskKey(round=self.rounds, node=name, kind="finetune"), scores)

    def compared(self, name: str, values: Mapping[str, float], *, examples: int = 100) -> None:
        scores = {label: Score(examples=examples, metrics={self.metric: value}) for label, value in values.items()}
        self._scored(TaskKey(round=self.rounds, node=name, kind="compare"), scores)

    def _scored(self, key: TaskKey, scores: Mapping[str, Score]) -> None:
        traffic = Traffic(sent=SIZE, received=800)
        self.tell(ModelEvaluated, after=0.4, task=key, scores=scores, seconds=0.3, bytes=traffic)

    def aggregated(self, round: int, *contributors: str) -> None:
        names = contributors or self.nodes
        self.tell(RoundAggregated, after=0.3, round=round, model=blob(f"{round % 10}"), contributors=names)

    def round(self, number: int) -> None:
        """A whole round in which all goes well, and the evaluation of its model."""
        self.opened(number)
        for name in self.nodes:
            self.started(number, name)
        for name in self.nodes:
            self.trained(number, name)
        self.aggregated(number)
        self.scored(number)

    def scored(self, number: int) -> None:
        """All score the model of a round; of five personal models one does worse than the global one."""
        for place, name in enumerate(self.nodes):
            value = 0.96 - 0.86 * 0.55**number - 0.01 * (place % 5)
            own = value + 0.035 - 0.01 * (place % 5) if self.personal and number else None
            self.evaluated(number, name, value, personal=own, examples=100 + 20 * place)

    def working(self, task: TaskKey, step: int = 0, steps: int = 40, phase: Phase = "training", **more: Any) -> None:
        metrics = more.pop("metrics", {"train_loss": 0.412})
        sample = {"epoch": 1, "epochs": 1, **more}
        self.progress[str(task)] = Progress(key=task, phase=phase, step=step, steps=steps, metrics=metrics, **sample)


def blob(digit: str) -> Blob:
    return Blob(digest=digit * 64, size=SIZE)


def preparing(*names: str) -> Story:
    """One node is ready, one is lost, the others and the first model are being made."""
    story = Story(*(names or NAMES[:4]))
    story.ready(story.nodes[0])
    story.lost(story.nodes[1], "permission denied (publickey) for fed@bob.example.org")
    return story


def mid_round(*names: str, personal: bool = False) -> Story:
    """Round 4 of 10: one node is done, one has failed, the others train."""
    story = Story(*(names or NAMES), personal=personal)
    story.ready()
    story.built()
    story.scored(0)
    for number in (1, 2, 3):
        story.round(number)
    story.opened(4)
    for name in story.nodes[:4]:
        story.started(4, name)
    story.trained(4, story.nodes[0])
    story.failed(4, story.nodes[1])
    for place, name in enumerate(story.nodes[2:4]):
        story.working(TaskKey(round=4, node=name), step=25 - 9 * place)
    return story


def finished(*names: str, compare: bool = True, personal: bool = False, finetune: bool = False) -> Story:
    """Ten rounds, the fine-tuning and the comparison."""
    story = Story(*names, compare=compare, personal=personal)
    story.ready()
    story.built()
    story.scored(0)
    for number in range(1, 11):
        story.round(number)
    if finetune:
        for place, name in enumerate(story.nodes):
            story.started(10, name, kind="finetune")
            value = 0.957 - 0.01 * (place % 5)
            story.finetuned(name, value, value + 0.035 - 0.01 * (place % 5), examples=100 + 20 * place)
    if compare:
        for name in story.nodes:
            story.started(0, name, kind="alone")
            story.trained(0, name, kind="alone", after=20)
        for place, name in enumerate(story.nodes):
            alone = {f"alone/{n}": (0.97 if n == name else 0.38) - 0.02 * i for i, n in enumerate(story.nodes)}
            story.compared(name, {"global": 0.95 - 0.01 * place, **alone})
    story.tell(RunFinished)
    return story
