"""What has happened, in the past tense: the lines of the journal.

Owns the union `Event`; knows nothing of who listens. Every event carries `at`, the coordinator's wall clock in UTC.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from fedctl.ledger import Pin
from fedctl.records import Blob, Kind, Score, TaskKey
from fedctl.traffic import Traffic

UNNEEDED = "the round was closed without it"
"""Why a training was stopped that the round had no need of any more; no fault of the node's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """A coordinator took up the run; a second one in a journal is a resume.

    `absent_s` is how long no coordinator lived before it, and `patience_s` how long the run waits for a node to come
    back (None: for ever). By `draw`, a number of this run's own, nodes are drawn where chance is part of a guarantee.
    Where it is `masked`, no single update can be read. `noise` says who adds it (empty: nobody does), and a run ends
    before it would spend more than `budget` at `delta`.
    """

    at: datetime
    run: str
    federation: str
    seed: int
    rounds: int
    nodes: tuple[str, ...]
    compare: bool
    metric: str
    mode: str
    absent_s: float = 0.0
    patience_s: float | None = None
    draw: int = 0
    masked: bool = False
    noise: str = ""
    delta: float | None = None
    budget: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReady:
    """A node was reached and has what its tasks need."""

    at: datetime
    node: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLost:
    """A node could not be reached or made ready; `passing` where that may pass by itself."""

    at: datetime
    node: str
    reason: str
    passing: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDeclined:
    """A node was reached and is not to be used now, by its owner's word.

    It may be asked again after so many `seconds`; 0 where its owner names no time.
    """

    at: datetime
    node: str
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInitialized:
    """The first global model was built from the user's code and the seed; the `rest` are the tensors that stay.

    `forecast` is what the run will carry if nothing fails.
    """

    at: datetime
    model: Blob
    rest: Blob | None = None
    forecast: Traffic | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOpened:
    """A round began with this cohort; the first `wanted` updates close it, and with fewer than `quorum` it cannot.

    Updates of earlier rounds' trainings count in it up to `max_staleness` rounds later (0: none do). In a `secure` one
    updates are masked.
    """

    at: datetime
    round: int
    nodes: tuple[str, ...]
    wanted: int = 0
    quorum: int = 0
    max_staleness: int = 0
    secure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundWidened:
    """These nodes were added to the round: its cohort could not reach its quorum any more, or more may train now."""

    at: datetime
    round: int
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStarted:
    """A node accepted a task."""

    at: datetime
    task: TaskKey


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailed:
    """A task gave no answer; `detail` is the end of the node's traceback."""

    at: datetime
    task: TaskKey
    reason: str
    retryable: bool
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReceived:
    """A node's trained weights are on the coordinator's disk, checked.

    `seconds` is the node's time in fit, `line_s` what its model and its update took on the line, `accelerator` what it
    trained on, as torch calls it: `cpu`, `cuda:1`. `steps` are those of the optimizer; a `partial` update is what the
    node had done when its time was over, and a `fresh` one comes of a node on which what it had kept was gone.
    `wire` is the update as it travelled where codecs packed it, `ledger` the entry of the node's ledger for its result.
    """

    at: datetime
    task: TaskKey
    update: Blob
    examples: int
    metrics: Mapping[str, float]
    seconds: float
    bytes: Traffic = Traffic()
    accelerator: str = ""
    steps: int = 0
    partial: bool = False
    fresh: bool = False
    line_s: float = 0.0
    privacy: Mapping[str, float] = field(default_factory=dict)
    wire: Blob | None = None
    ledger: Pin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateLost:
    """An update that had been received is no longer on the coordinator's disk as it was."""

    at: datetime
    task: TaskKey
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEvaluated:
    """A node scored one or more models on its own validation data; `ledger` is its ledger's entry for that."""

    at: datetime
    task: TaskKey
    scores: Mapping[str, Score]
    seconds: float
    bytes: Traffic = Traffic()
    ledger: Pin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepClosed:
    """A step of a round whose updates are masked came to its end; these nodes did it, and go on to the next.

    After `keys` they are the round's cohort, after `shares` those that train, after `train` those that the round's sum
    is of, and after `agree` those that signed that.
    """

    at: datetime
    round: int
    step: Kind
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageReceived:
    """What a node says to others in a step of secure aggregation is on the coordinator's disk, checked."""

    at: datetime
    task: TaskKey
    message: Blob
    seconds: float
    bytes: Traffic = Traffic()
    ledger: Pin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundHeld:
    """All updates of a round are in and wait for `fedctl aggregate --commit`."""

    at: datetime
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundAggregated:
    """The updates of these contributors became the next model.

    `memory` is what the strategy sends beside it, and its `difference` to the model before is what travels to nodes
    that have that one (None: the model travels whole). With noise, `epsilon` is what the run has spent with this round,
    and `epsilon_next` what it will have with one more.
    """

    at: datetime
    round: int
    model: Blob
    contributors: tuple[str, ...]
    memory: Blob | None = None
    difference: Blob | None = None
    epsilon: float | None = None
    epsilon_next: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundAbandoned:
    """The masks of a round's sum did not come off, for shares were false: the model stays as it was.

    These nodes seem to have dealt them, and are in no later round. Its noise counts as spent: whoever holds back a
    secret of the round may know its sum.
    """

    at: datetime
    round: int
    nodes: tuple[str, ...]
    reason: str
    epsilon: float | None = None
    epsilon_next: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """All rounds are done; or no more can be, for the `reason`."""

    at: datetime
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailed:
    """The run gave up."""

    at: datetime
    reason: str


Event = (
    RunStarted
    | NodeReady
    | NodeLost
    | NodeDeclined
    | ModelInitialized
    | RoundOpened
    | RoundWidened
    | TaskStarted
    | TaskFailed
    | UpdateReceived
    | UpdateLost
    | StepClosed
    | MessageReceived
    | ModelEvaluated
    | RoundHeld
    | RoundAggregated
    | RoundAbandoned
    | RunFinished
    | RunFailed
)
