"""What has happened, in the past tense: the lines of the journal.

Owns the union `Event` and its JSON form; knows nothing of who listens. Every event carries `at`, the coordinator's wall
clock in UTC. `dump` gives one line, `load` reads it back and refuses anything it does not know.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, get_args

from fedctl import strictjson
from fedctl.records import Blob, Score, TaskKey
from fedctl.traffic import Traffic

UNNEEDED = "the round was closed without it"
"""Why a training was stopped that the round had no need of any more; no fault of the node's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """A coordinator took up the run; a second one in a journal is a resume.

    `absent_s` is how long no coordinator lived before it, and `patience_s` how long the run waits for a node to come
    back (None: for ever).
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

    Updates of earlier rounds' trainings count in it up to `max_staleness` rounds later (0: none do).
    """

    at: datetime
    round: int
    nodes: tuple[str, ...]
    wanted: int = 0
    quorum: int = 0
    max_staleness: int = 0


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


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateLost:
    """An update that had been received is no longer on the coordinator's disk as it was."""

    at: datetime
    task: TaskKey
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEvaluated:
    """A node scored one or more models on its own validation data."""

    at: datetime
    task: TaskKey
    scores: Mapping[str, Score]
    seconds: float
    bytes: Traffic = Traffic()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundHeld:
    """All updates of a round are in and wait for `fedctl aggregate --commit`."""

    at: datetime
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundAggregated:
    """The updates of these contributors became the next model.

    `memory` is what the strategy sends beside it, and its `difference` to the model before is what travels to nodes
    that have that one (None: the model travels whole).
    """

    at: datetime
    round: int
    model: Blob
    contributors: tuple[str, ...]
    memory: Blob | None = None
    difference: Blob | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """All rounds are done."""

    at: datetime


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
    | ModelEvaluated
    | RoundHeld
    | RoundAggregated
    | RunFinished
    | RunFailed
)

EVENTS: Mapping[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}


def dump(event: Event) -> str:
    """One line of JSON, without its newline: `at`, `event`, then the event's own fields."""
    fields = {f.name: _to_json(getattr(event, f.name)) for f in dataclasses.fields(event)}
    head = {"at": fields.pop("at"), "event": type(event).__name__}
    return json.dumps({**head, **fields}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def load(line: str) -> Event:
    """Read a line back; raises ValueError when it is no event of this version."""
    value = strictjson.loads(line)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    name = value.pop("event", None)
    kind = EVENTS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError("unknown event")
    names = {f.name for f in dataclasses.fields(kind)}
    if not set(value) <= names:
        raise ValueError(f"{kind.__name__} has no field {', '.join(sorted(set(value) - names))}")
    try:
        return kind(**{name: _FROM_JSON.get(name, _same)(field) for name, field in value.items()})
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"{kind.__name__}: {error}") from error


def _to_json(value: Any) -> Any:
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case TaskKey():
            return str(value)
        case Blob() | Score() | Traffic():
            return value.to_json()
        case float():
            return value if value - value == 0 else None
        case Mapping():
            return {str(key): _to_json(item) for key, item in value.items()}
        case tuple():
            return [_to_json(item) for item in value]
        case _:
            return value


def _same(value: Any) -> Any:
    return value


def _metrics_from_json(value: Any) -> dict[str, float]:
    return {name: float("nan") if number is None else float(number) for name, number in value.items()}


_FROM_JSON: Mapping[str, Callable[[Any], Any]] = {
    "at": datetime.fromisoformat,
    "task": TaskKey.parse,
    "model": Blob.from_json,
    "update": Blob.from_json,
    "rest": lambda value: value and Blob.from_json(value),
    "memory": lambda value: value and Blob.from_json(value),
    "difference": lambda value: value and Blob.from_json(value),
    "nodes": tuple,
    "contributors": tuple,
    "metrics": _metrics_from_json,
    "scores": lambda value: {label: Score.from_json(score) for label, score in value.items()},
    "bytes": lambda value: Traffic(**value),
    "forecast": lambda value: value and Traffic(**value),
}
