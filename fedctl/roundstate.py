"""What is known of a round: what its nodes answered, its state while it is open, its report once it is closed.

Pure. `runstate` has the whole run, of which these are parts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from fedctl.records import Blob, Kind, Score, TaskKey
from fedctl.traffic import Traffic

STEPS: tuple[Kind, ...] = ("keys", "shares", "train", "agree", "unmask")
"""Of a round whose updates are masked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A node's update of a round, or of its training alone."""

    key: TaskKey
    update: Blob
    examples: int
    metrics: Mapping[str, float]
    seconds: float
    line_s: float = 0.0
    steps: int = 0
    partial: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a node's validation of one or more models gave, by label."""

    scores: Mapping[str, Score]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The last failed attempt; `spent` counts the attempts that the budget has paid for."""

    attempt: int
    spent: int
    reason: str
    retryable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a node says to others in a step of secure aggregation: a file of the run."""

    key: TaskKey
    message: Blob


Answer = Received | Scored | Said | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A training that was asked for an earlier round and whose update still counts; `begun_at` is None before it began.

    It was asked at `asked_at`, moved on by the time in which no coordinator lived.
    """

    key: TaskKey
    asked_at: datetime
    begun_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundState:
    """The open round: its cohort and what each of its nodes has answered, in the order in which they did.

    `wanted` and `quorum` count updates: those that close it at once, and those that it cannot close without. `absent_s`
    is how long of its time no coordinator lived, `answered_s` when the nodes' last answers came, in seconds from its
    opening without that time. `begun` has the newest training of each node that has begun one, and when; `asked_at`
    when each was asked, moved on by that time. With a `max_staleness`, trainings that began up to so many rounds
    earlier answer it, too.

    A `secure` round goes in steps, each with the nodes that have done the one before: `steps` has those that did each
    that is closed, `said` the answers of each but the training, and `step_at` is when the last one closed, moved on by
    the time in which no coordinator lived.
    """

    number: int
    opened_at: datetime
    nodes: tuple[str, ...]
    wanted: int
    quorum: int
    absent_s: float = 0.0
    begun: Mapping[str, tuple[TaskKey, datetime]] = field(default_factory=dict)
    answered_s: Mapping[str, float] = field(default_factory=dict)
    answers: Mapping[str, Answer] = field(default_factory=dict)
    bytes: Traffic = Traffic()
    asked_at: Mapping[str, datetime] = field(default_factory=dict)
    max_staleness: int = 0
    secure: bool = False
    steps: Mapping[Kind, tuple[str, ...]] = field(default_factory=dict)
    said: Mapping[Kind, Mapping[str, Answer]] = field(default_factory=dict)
    step_at: datetime | None = None

    @property
    def updates(self) -> dict[str, Received]:
        """The updates that are in, by node name, in the order of names."""
        return {name: answer for name, answer in sorted(self.answers.items()) if isinstance(answer, Received)}

    @property
    def first(self) -> tuple[str, ...]:
        """The nodes whose updates are taken, in the order of names: the first that came, as many as are wanted."""
        came = [name for name, answer in self.answers.items() if isinstance(answer, Received)]
        return tuple(sorted(came[: self.wanted]))

    @property
    def lost(self) -> list[str]:
        """The nodes of a secure round whose update its sum is of, and is no longer there."""
        return [name for name in self.steps.get("train", ()) if not isinstance(self.answers.get(name), Received)]

    @property
    def step(self) -> Kind | None:
        """What a secure round is at: its first step that is not closed, or the training where an update was lost."""
        if not self.secure:
            return None
        return "train" if self.lost else next(step for step in STEPS if step not in self.steps)

    def training(self, name: str) -> TaskKey | None:
        """What a node trains for the round, if it has begun to and has not answered yet."""
        if name not in self.begun:
            return None
        key, answer = self.begun[name][0], self.answers.get(name)
        is_new = answer is None or (isinstance(answer, Failed) and answer.attempt < key.attempt)
        return key if is_new else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """A closed round and its cohort.

    Of its contributors, when each update came, in seconds from its opening, and what it took; `partial` has the steps
    of those that handed in what they had done when their time was over. `staleness` says by how many rounds each
    update's training began earlier; it is empty for a round that takes no update of an earlier one.
    """

    number: int
    nodes: tuple[str, ...]
    contributors: tuple[str, ...]
    failed: tuple[str, ...]
    model: Blob
    memory: Blob | None
    difference: Blob | None
    epsilon: float | None
    opened_at: datetime
    closed_at: datetime
    answered_s: Mapping[str, float]
    fit_seconds: Mapping[str, float]
    line_seconds: Mapping[str, float]
    partial: Mapping[str, int]
    bytes: Traffic
    staleness: Mapping[str, int] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Wall seconds from its opening to its aggregation."""
        return (self.closed_at - self.opened_at).total_seconds()
