"""Where a run stands, in the words that `fedctl status --json` fixes: `report` makes a `StatusReport` of a state.

Pure and standard library only; the views draw from it and the command line prints its `to_json`. It owns the words for
what a run and its nodes are about; what their numbers mean is the business of `measures`.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from fedctl.events import Traffic
from fedctl.federation import Monitor
from fedctl.measures import (
    BestRound,
    Comparison,
    Metrics,
    WorstNode,
    average,
    best_round,
    comparisons,
    global_scores,
    is_settled,
    monitor,
    newest_metrics,
    worst_node,
)
from fedctl.records import Blob, Kind, TaskKey
from fedctl.state import Answer, Failed, NodeState, Received, RunState, Scored

Standing = Literal["running", "held", "interrupted", "finished", "failed"]
Activity = Literal[
    "preparing", "waiting", "training", "evaluating", "alone", "comparing", "unreachable", "done", "failed", "lost"
]

_AT_WORK: Mapping[Kind, Activity] = {
    "train": "training",
    "evaluate": "evaluating",
    "alone": "alone",
    "compare": "comparing",
    "initialize": "preparing",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStanding:
    """One node; its metrics are those of its training, and over them its newest scoring of the global model."""

    name: str
    state: Activity
    round: int
    attempt: int
    metrics: Metrics
    bytes: Traffic
    error: str | None
    examples: int
    seconds: float
    accelerator: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStanding:
    """A closed round, or the first model as round 0; `metrics` are its model's, scored by `evaluated` nodes.

    They are `settled` once no node is waited for any more.
    """

    round: int
    contributors: tuple[str, ...]
    metrics: Metrics
    seconds: float
    bytes: Traffic
    evaluated: int
    settled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """A whole run, as `status --json` prints it; `resume` is the command that takes up a run that stands still."""

    run: str
    state: Standing
    round: int
    rounds: int
    model: Blob | None
    metrics: Metrics
    bytes: Traffic
    nodes: tuple[NodeStanding, ...]
    history: tuple[RoundStanding, ...]
    compare: tuple[Comparison, ...]
    federation: str
    seed: int
    seconds: float
    monitor: Monitor
    best: BestRound | None
    worst: WorstNode | None
    reason: str | None = None
    resume: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The report in JSON's own types; a number that is not finite is null."""
        value: dict[str, Any] = _to_json(self)
        return value


def report(state: RunState, *, alive: bool) -> StatusReport:
    """Where a run stands; `alive` says whether a coordinator holds its lock."""
    standing = run_standing(state, alive=alive)
    return StatusReport(
        run=state.run,
        state=standing,
        round=state.round,
        rounds=state.rounds,
        model=state.model,
        metrics=newest_metrics(state),
        bytes=sum((node.bytes for node in state.nodes.values()), Traffic()),
        nodes=tuple(_node(state, node) for node in state.nodes.values()),
        history=_history(state),
        compare=comparisons(state),
        federation=state.federation,
        seed=state.seed,
        seconds=elapsed(state),
        monitor=monitor(state),
        best=best_round(state),
        worst=worst_node(state),
        reason=state.reason,
        resume=f"fedctl launch --resume {state.run}" if standing in ("held", "interrupted", "failed") else None,
    )


def run_standing(state: RunState, *, alive: bool) -> Standing:
    """The state of the run; one whose coordinator is gone before it is over is interrupted."""
    match state.status:
        case "new" | "running":
            return "running" if alive else "interrupted"
        case ended:
            return ended


def activity(state: RunState, node: NodeState, task: TaskKey | None) -> Activity:
    """What a node is about, `task` being what it works on, if anything."""
    ended = state.status in ("finished", "failed")
    if node.status == "lost":
        return "lost"
    if task is not None and not ended:
        return _AT_WORK[task.kind]
    if node.status == "new":
        return "waiting" if ended else "preparing"
    return _answered(state, node.name)


def elapsed(state: RunState, now: datetime | None = None) -> float:
    """Seconds from the start of the run to its end, or to `now`, or to its last event."""
    until = state.ended_at or now or state.last_at
    return max(0.0, (until - state.started_at).total_seconds()) if until and state.started_at else 0.0


def _node(state: RunState, node: NodeState) -> NodeStanding:
    return NodeStanding(
        name=node.name,
        state=activity(state, node, node.task),
        round=node.round,
        attempt=node.attempt,
        metrics={**node.metrics, **(node.score.metrics if node.score else {})},
        bytes=node.bytes,
        error=node.error,
        examples=node.examples,
        seconds=node.seconds,
        accelerator=node.accelerator,
    )


def _history(state: RunState) -> tuple[RoundStanding, ...]:
    first = global_scores(state, 0)
    rows = [
        RoundStanding(
            round=0,
            contributors=(),
            metrics=average(first.values()),
            seconds=0.0,
            bytes=Traffic(),
            evaluated=len(first),
            settled=is_settled(state, 0),
        )
    ]
    for closed in state.history:
        scores = global_scores(state, closed.number)
        rows.append(
            RoundStanding(
                round=closed.number,
                contributors=closed.contributors,
                metrics=average(scores.values()),
                seconds=closed.seconds,
                bytes=closed.bytes,
                evaluated=len(scores),
                settled=is_settled(state, closed.number),
            )
        )
    return tuple(rows if first else rows[1:])


def _answered(state: RunState, name: str) -> Activity:
    """Where a ready node without a task stands, by its last answer that still counts."""
    if state.open is not None:
        return _outcome(state.open.answers.get(name))
    if name in state.compared:
        return _outcome(state.compared[name])
    if isinstance(state.alone.get(name), Failed):
        return "failed"
    if state.status in ("finished", "failed") and state.history:
        return "failed" if name in state.history[-1].failed else "done"
    return "waiting"


def _outcome(answer: Answer | None) -> Activity:
    match answer:
        case None:
            return "waiting"
        case Failed():
            return "failed"
        case Received() | Scored():
            return "done"


def _to_json(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {name: _to_json(item) for name, item in value.items()}
        case tuple():
            return [_to_json(item) for item in value]
        case _ if dataclasses.is_dataclass(value):
            return {f.name: _to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        case _:
            return value
