"""What is known of a run: `RunState` and its parts, as frozen dataclasses.

Pure. `state.apply` makes them of events; everything that plans, reports or draws reads them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, assert_never

from fedctl.records import COORDINATOR, Blob, Kind, Score, TaskKey
from fedctl.roundstate import Answer, Failed, Pending, Received, RoundReport, RoundState, Said, Scored
from fedctl.traffic import Traffic

__all__ = [
    "Answer",
    "Failed",
    "NodeState",
    "Pending",
    "Received",
    "RoundReport",
    "RoundState",
    "RunState",
    "Said",
    "Scored",
    "Status",
]

Status = Literal["new", "running", "held", "finished", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """One node; `task` is what it was last seen to work on, `score` its newest scoring of the global model.

    It is `lost` when it cannot be reached or used, and `away` when its owner does not want it used now. A trouble began
    at `trouble_at`, `asked_at` is when the node last was found in it, and it is over with an answer or a while of calm;
    `passing` says whether it may pass by itself. `strikes` are the rounds in a row that it failed in, `struck` the last
    one of them. One that is `barred`, for that reason, is in no round until a run that gave up is taken up again.
    `spent` has noise, rate and steps of each of its trainings with noise. `kept` is its training whose update last
    became part of a model: with what that left on the node it goes on.
    """

    name: str
    status: Literal["new", "ready", "lost", "away"] = "new"
    was_ready: bool = False
    ready_at: datetime | None = None
    trouble_at: datetime | None = None
    asked_at: datetime | None = None
    passing: bool = True
    ask_again_s: float = 0.0
    strikes: int = 0
    struck: int = 0
    barred: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    task: TaskKey | None = None
    since: datetime | None = None
    attempt: int = 0
    round: int = 0
    contributions: int = 0
    kept: TaskKey | None = None
    examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    score: Score | None = None
    seconds: float = 0.0
    accelerator: str = ""
    spent: tuple[tuple[float, float, int], ...] = ()
    bytes: Traffic = Traffic()
    error: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A whole run. `round` is the newest aggregated one; `evaluations[k]` has the nodes' scores of round k's model.

    `pending` are trainings of closed rounds that still count, `carried` the updates that are in and that no round has
    taken yet, in the order in which they came: both by node, and only between and in rounds that take such.
    `difference` is that of the newest model to the `previous` one, where it travels as such. With noise, `epsilon` is
    what has been spent at `delta`, `epsilon_next` what will have been with one more round, and `budget` what may be.
    """

    run: str = ""
    federation: str = ""
    seed: int = 0
    rounds: int = 0
    compare: bool = False
    metric: str = "val_loss"
    mode: str = "min"
    patience_s: float | None = None
    draw: int = 0
    masked: bool = False
    noise: str = ""
    delta: float | None = None
    budget: float | None = None
    status: Status = "new"
    reason: str | None = None
    started_at: datetime | None = None
    resumed_at: datetime | None = None
    ended_at: datetime | None = None
    last_at: datetime | None = None
    initialization: Failed | None = None
    initial: Blob | None = None
    rest: Blob | None = None
    forecast: Traffic | None = None
    epsilon: float | None = None
    epsilon_next: float | None = None
    model: Blob | None = None
    memory: Blob | None = None
    difference: Blob | None = None
    previous: Blob | None = None
    round: int = 0
    open: RoundState | None = None
    pending: Mapping[str, Pending] = field(default_factory=dict)
    carried: Mapping[str, Received] = field(default_factory=dict)
    nodes: Mapping[str, NodeState] = field(default_factory=dict)
    history: tuple[RoundReport, ...] = ()
    evaluations: Mapping[int, Mapping[str, Answer]] = field(default_factory=dict)
    alone: Mapping[str, Answer] = field(default_factory=dict)
    finetuned: Mapping[str, Answer] = field(default_factory=dict)
    compared: Mapping[str, Answer] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """True when nothing is left to do for this coordinator."""
        return self.status in ("held", "finished", "failed")

    def answers(self, kind: Kind, round: int) -> Mapping[str, Answer]:
        """The answers that tasks of a kind have had so far, by node."""
        match kind:
            case "train":
                return self.open.answers if self.open and self.open.number == round else {}
            case "evaluate":
                return self.evaluations.get(round, {})
            case "alone":
                return self.alone
            case "compare":
                return self.compared
            case "finetune":
                return self.finetuned
            case "initialize":
                return {COORDINATOR: self.initialization} if self.initialization else {}
            case "keys" | "shares" | "agree" | "unmask":
                return self.open.said.get(kind, {}) if self.open and self.open.number == round else {}
            case _:
                assert_never(kind)

    def is_open(self, round: int) -> bool:
        """Whether this is the round that is open."""
        return self.open is not None and self.open.number == round

    def is_pending(self, key: TaskKey) -> bool:
        """Whether this is a training of a closed round that still counts."""
        return key.node in self.pending and self.pending[key.node].key == key

    def counts(self, key: TaskKey) -> bool:
        """Whether what a training comes to is still news."""
        return self.is_open(key.round) or self.is_pending(key)

    def begun(self, name: str) -> tuple[TaskKey, datetime] | None:
        """What a node has begun to train that still counts and is not answered, and when it began."""
        if name in self.pending:
            asked = self.pending[name]
            return (asked.key, asked.begun_at) if asked.begun_at else None
        return self.open.begun[name] if self.open and self.open.training(name) else None

    def is_training(self, key: TaskKey) -> bool:
        """Whether a node has begun this training, and it still counts and is not answered."""
        begun = self.begun(key.node)
        return begun is not None and begun[0] == key

    def left_over(self, node: NodeState) -> TaskKey | None:
        """What a node was seen to train for a round that was closed without it: that is still to be stopped."""
        task = node.task
        is_old = task and task.kind == "train" and task.round <= self.round
        return task if task and is_old and not self.is_pending(task) else None

    def model_of(self, number: int) -> Blob:
        """The model of a round, of 0 the first one; raises AssertionError where it is not made yet."""
        model = self.history[number - 1].model if number else self.initial
        if model is None:
            raise AssertionError("asked for before the first model was built")
        return model

    def with_node(self, name: str, **changes: object) -> "RunState":
        """The state with a node changed; as it was where there is no such node."""
        if name not in self.nodes:
            return self
        return replace(self, nodes={**self.nodes, name: replace(self.nodes[name], **changes)})  # type: ignore[arg-type]
