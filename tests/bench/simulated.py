"""Whole runs on a clock of their own: the real `plan`, `apply` and strategy; what a node trains takes no time here.

Softmax regression of MNIST's images on a hundred nodes, dealt by Dirichlet(0.5). A node's training takes as long as its
own speed and its number of images say, and a little chance.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedctl import staleness
from fedctl.actions import Action, Aggregate, OpenRound, Perform, Prepare, WidenRound
from fedctl.events import (
    Event,
    ModelEvaluated,
    ModelInitialized,
    NodeReady,
    RoundAggregated,
    RoundOpened,
    RoundWidened,
    RunStarted,
    TaskStarted,
    UpdateReceived,
)
from fedctl.federation import Federation, Node, Schedule, TaskSpec
from fedctl.jobs import seed_of
from fedctl.plan import plan
from fedctl.records import Blob, TaskKey
from fedctl.state import RunState, apply
from fedctl.strategies import Contribution, build
from fedctl.strategies.elementwise import Moved
from tests.claims.mnist import images

NODES, ALPHA, BATCH, LR = 100, 0.5, 32, 0.2
START = datetime(2026, 1, 1, tzinfo=UTC)
NOTHING = Blob(digest="0" * 64, size=0)
ROUNDS = 2000

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Reached:
    """A run that has reached its target: after so many seconds of its clock, with so many updates in its models."""

    seconds: float
    updates: int
    models: int


@cache
def sites(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The images of each node, of whom none has fewer than two."""
    train, _ = images()
    rng = np.random.RandomState(seed)
    while True:
        shares: list[list[Any]] = [[] for _ in range(NODES)]
        for digit in range(10):
            rows = rng.permutation(np.flatnonzero(train["y"] == digit))
            cuts = (np.cumsum(rng.dirichlet([ALPHA] * NODES)) * len(rows)).astype(int)[:-1]
            for share, part in zip(shares, np.split(rows, cuts), strict=True):
                share.append(part)
        found = [np.concatenate(share) for share in shares]
        if min(map(len, found)) >= 2:
            return [(torch.from_numpy(train["x"][rows]), torch.from_numpy(train["y"][rows])) for rows in found]


class Simulation:
    """One run of a schedule. `spread` is the sigma of the nodes' speeds, which are lognormal."""

    def __init__(self, schedule: Schedule, *, seed: int, spread: float) -> None:
        self.federation = Federation(
            name="mnist",
            folder=Path(),
            task=TaskSpec(model="model.py:Softmax", data="data.py:Whole"),
            nodes=tuple(Node(name=f"n{number:03d}") for number in range(NODES)),
            seed=seed,
            rounds=ROUNDS,
            schedule=schedule,
        )
        self._numbers = {node.name: number for number, node in enumerate(self.federation.nodes)}
        self._sites = sites(seed)
        self._rng = np.random.RandomState(1000 + seed)
        self._speeds = self._rng.lognormal(0, spread, NODES)
        self._models: list[Tensors] = [{"weight": torch.zeros(10, 784), "bias": torch.zeros(10)}]
        self._updates: dict[TaskKey, Tensors] = {}
        self._answers: list[tuple[float, int, UpdateReceived]] = []
        self._asked: set[str] = set()
        self._now = 0.0
        self._state = RunState()
        _, test = images()
        self._test = torch.from_numpy(test["x"]).flatten(1), torch.from_numpy(test["y"])

    def until(self, target: float) -> Reached:
        """Run until a model is right on that share of the images for testing; raises AssertionError if none is."""
        names = tuple(self._numbers)
        self._tell(
            RunStarted(
                at=self._at, run="r", federation="mnist", seed=self.federation.seed, rounds=ROUNDS, nodes=names,
                compare=False, metric="val_loss", mode="min",
            )
        )  # fmt: skip
        self._tell(ModelInitialized(at=self._at, model=NOTHING), *(NodeReady(at=self._at, node=name) for name in names))
        while self._state.round < ROUNDS:
            fresh = [one for one in self._planned() if one.key not in self._asked]
            for action in fresh:
                self._asked.add(action.key)
                self._perform(action)
            if any(isinstance(one, Aggregate) for one in fresh) and self._accuracy() >= target:
                return Reached(self._now, len(self._updates), self._state.round)
            if not fresh:
                self._now, _, answer = heapq.heappop(self._answers)
                self._tell(UpdateReceived(**{**_fields(answer), "at": self._at}))
        raise AssertionError("the target is out of reach")

    @property
    def _at(self) -> datetime:
        return START + timedelta(seconds=self._now)

    def _planned(self) -> Sequence[Action]:
        return plan(self._state, self.federation, self._at)

    def _tell(self, *events: Event) -> None:
        for event in events:
            self._state = apply(self._state, event)

    def _perform(self, action: Action) -> None:
        match action:
            case Perform(task=key) if key.kind == "train":
                self._tell(TaskStarted(at=self._at, task=key))
                self._train(key)
            case Perform(task=key):
                self._tell(ModelEvaluated(at=self._at, task=key, scores={}, seconds=0.0))
            case OpenRound() | WidenRound():
                kind = RoundOpened if isinstance(action, OpenRound) else RoundWidened
                self._tell(kind(at=self._at, **_fields(action)))
            case Aggregate():
                self._aggregate(action)
            case Prepare():
                raise AssertionError("all nodes are ready")
            case _:
                pass

    def _train(self, key: TaskKey) -> None:
        """One pass of SGD from the model of the task's own round; its answer comes when its time is over."""
        number = self._numbers[key.node]
        x, y = self._sites[number]
        weight, bias = (value.clone() for value in self._models[key.round - 1].values())
        generator = torch.Generator().manual_seed(seed_of(self.federation.seed, key))
        for rows in torch.randperm(len(y), generator=generator).split(BATCH):
            flat = x[rows].flatten(1)
            error = torch.softmax(flat @ weight.T + bias, dim=1)
            error[torch.arange(len(rows)), y[rows]] -= 1
            weight -= LR / len(rows) * error.T @ flat
            bias -= LR * error.mean(dim=0)
        self._updates[key] = {"weight": weight, "bias": bias}
        took = float(self._speeds[number] * len(y) / 40 * self._rng.lognormal(0, 0.3))
        answer = UpdateReceived(
            at=self._at, task=key, update=NOTHING, examples=len(y), metrics={}, seconds=took, steps=1
        )  # fmt: skip
        heapq.heappush(self._answers, (self._now + took, len(self._updates), answer))

    def _aggregate(self, action: Aggregate) -> None:
        opened = self._state.open
        assert opened is not None
        share = staleness.build(self.federation.schedule.staleness).share
        start = self._models[-1]
        contributions = []
        for name in action.contributors:
            received = opened.updates[name]
            weights, late = self._updates[received.key], opened.number - received.key.round
            if late:
                weights = Moved(start, weights, share(late), self._models[received.key.round - 1])
            contributions.append(Contribution(name=name, weight=received.examples, weights=weights))
        made = build(self.federation.strategy).aggregate(start, contributions, {}).model
        self._models.append({name: made[name] for name in ("weight", "bias")})
        self._tell(
            RoundAggregated(at=self._at, round=action.round, model=NOTHING, contributors=action.contributors)
        )  # fmt: skip

    def _accuracy(self) -> float:
        x, y = self._test
        weight, bias = self._models[-1].values()
        return ((x @ weight.T + bias).argmax(dim=1) == y).sum().item() / len(y)


def _fields(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}
