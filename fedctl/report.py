"""Where a run stands, in the words that `fedctl status --json` fixes: `report` makes a `StatusReport` of a state.

Pure and standard library only; the views draw from it and the command line prints its `to_json`. It owns the words for
what a run and its nodes are about; what their numbers mean is the business of `measures`.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal

from fedctl.activity import NodeStanding, node_standing
from fedctl.federation import Monitor
from fedctl.measures import (
    BestRound,
    Comparison,
    Metrics,
    Personalization,
    WorstNode,
    average,
    best_round,
    comparisons,
    global_scores,
    is_settled,
    monitor,
    newest_metrics,
    personal_metrics,
    personalization,
    worst_node,
)
from fedctl.records import Blob, Kind, Progress
from fedctl.state import RunState
from fedctl.traffic import Traffic
from fedctl.waiting import Straggler, Waiting, stragglers, waiting

Standing = Literal["running", "held", "interrupted", "finished", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStanding:
    """The open round: the updates of `wanted` of its nodes close it, and with fewer than `quorum` it cannot close.

    Updates of trainings that were asked for up to `max_staleness` rounds earlier count in it. Only a round with masked
    updates is in a `step`.
    """

    round: int
    nodes: tuple[str, ...]
    updates: tuple[str, ...]
    wanted: int
    quorum: int
    max_staleness: int
    step: Kind | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStanding:
    """A closed round, or the first model as round 0; `metrics` are its model's, scored by `evaluated` nodes.

    They are `settled` once no node is waited for any more. `partial` has the steps of those contributors that handed
    in what they had done when their time was over. `staleness` says how many models later than they began each update
    was taken; it is empty for a round that took none but those of its own model.
    """

    round: int
    contributors: tuple[str, ...]
    metrics: Metrics
    seconds: float
    bytes: Traffic
    evaluated: int
    settled: bool
    partial: Mapping[str, int]
    staleness: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """What is promised of updates: whether they are `masked`, and by noise.

    `noise` says who adds it (None: nobody), `epsilon` what has been spent at `delta`, and `epsilon_next` what will have
    been with one more round (None: before the first), `budget` what may be (None: no bound).
    """

    masked: bool
    noise: str | None
    delta: float | None
    epsilon: float | None
    epsilon_next: float | None
    budget: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """A whole run, as `status --json` prints it; `resume` is the command that takes up a run that stands still.

    `privacy` is what is promised of updates (None: nothing). `bytes` is what the lines have carried so far, `forecast`
    what they will have once all rounds are done (None: of a run without a first model, or of a journal that has no
    forecast).
    """

    run: str
    state: Standing
    round: int
    rounds: int
    model: Blob | None
    metrics: Metrics
    bytes: Traffic
    forecast: Traffic | None
    nodes: tuple[NodeStanding, ...]
    history: tuple[RoundStanding, ...]
    compare: tuple[Comparison, ...]
    personal: Personalization | None
    privacy: Guarantee | None
    federation: str
    seed: int
    seconds: float
    monitor: Monitor
    best: BestRound | None
    worst: WorstNode | None
    open: OpenStanding | None
    stragglers: tuple[Straggler, ...]
    waiting: tuple[Waiting, ...]
    reason: str | None = None
    resume: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The report in JSON's own types; a number that is not finite is null, and `global_` is called `global`."""
        value: dict[str, Any] = _to_json(self)
        return value


def report(
    state: RunState,
    *,
    alive: bool,
    now: datetime | None = None,
    progress: Mapping[str, Progress] = MappingProxyType({}),
) -> StatusReport:
    """Where a run stands; `alive` says whether a coordinator holds its lock.

    What a running run waits for is as of `now` (UTC), or of its last event; `progress` may hold newest samples by task.
    """
    standing = run_standing(state, alive=alive)
    moment = (now or state.last_at) if standing == "running" else None
    own = personal_metrics(state)
    return StatusReport(
        run=state.run,
        state=standing,
        round=state.round,
        rounds=state.rounds,
        model=state.model,
        metrics=newest_metrics(state),
        bytes=sum((node.bytes for node in state.nodes.values()), Traffic()),
        forecast=state.forecast,
        nodes=tuple(node_standing(state, node, moment, own.get(name, {})) for name, node in state.nodes.items()),
        history=_history(state),
        compare=comparisons(state),
        personal=personalization(state),
        privacy=_guarantee(state),
        federation=state.federation,
        seed=state.seed,
        seconds=elapsed(state, moment),
        monitor=monitor(state),
        best=best_round(state),
        worst=worst_node(state),
        open=_open(state),
        stragglers=stragglers(state, moment, progress) if moment else (),
        waiting=waiting(state),
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


def elapsed(state: RunState, now: datetime | None = None) -> float:
    """Seconds from the start of the run to its end, or to `now`, or to its last event."""
    until = state.ended_at or now or state.last_at
    return max(0.0, (until - state.started_at).total_seconds()) if until and state.started_at else 0.0


def _guarantee(state: RunState) -> Guarantee | None:
    if not state.noise and not state.masked:
        return None
    return Guarantee(
        masked=state.masked,
        noise=state.noise or None,
        delta=state.delta,
        epsilon=(state.epsilon or 0.0) if state.noise else None,
        epsilon_next=state.epsilon_next,
        budget=state.budget,
    )


def _open(state: RunState) -> OpenStanding | None:
    if state.open is None:
        return None
    return OpenStanding(
        round=state.open.number,
        nodes=state.open.nodes,
        updates=tuple(state.open.updates),
        wanted=state.open.wanted,
        quorum=state.open.quorum,
        max_staleness=state.open.max_staleness,
        step=state.open.step,
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
            partial={},
            staleness={},
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
                partial=closed.partial,
                staleness=closed.staleness,
            )
        )
    return tuple(rows if first else rows[1:])


def _to_json(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {name: _to_json(item) for name, item in value.items()}
        case tuple():
            return [_to_json(item) for item in value]
        case _ if dataclasses.is_dataclass(value):
            return {f.name.removesuffix("_"): _to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        case _:
            return value
