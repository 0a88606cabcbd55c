"""Whom a run waits for, and whom it has waited for: the stragglers of its open round, and shares of the waiting.

Pure and standard library only. What keeps a node is one of three things: its training (`compute`), the way of its
model and its update (`line`), or what comes before the training: a free slot, a worker's start, an attempt that failed
(`queue`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import Literal

from fedctl import fleet
from fedctl.records import Progress, TaskKey
from fedctl.state import Failed, Received, RoundReport, RoundState, RunState

Cause = Literal["compute", "line", "queue"]

_CAUSES: tuple[Cause, ...] = ("compute", "line", "queue")
"""Of equals the first counts."""

SLOW = 1.5
"""A straggler takes more than this many times the median of those whose updates are in,"""
LEAST_S = 2.0
"""and so many seconds more at least: of less nobody needs to be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """A node of the open round that is late: so many `seconds` from its opening, `ratio` times the others' median."""

    node: str
    cause: Cause
    seconds: float
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How long a run has waited for a node, which `share` of all its waiting that is, and for what most of all."""

    node: str
    seconds: float
    share: float
    cause: Cause


def stragglers(state: RunState, now: datetime, progress: Mapping[str, Progress]) -> tuple[Straggler, ...]:
    """The late nodes of the open round, in the order of names.

    There are none before as many updates are in as are still waited for, nor in a round that takes late updates: it
    waits for no node in particular. `progress` may hold newest samples by task.
    """
    opened = state.open
    if opened is None or opened.max_staleness:
        return ()
    late = sorted(name for name in opened.nodes if _is_waited_for(state, opened, name, now))
    came = [opened.answered_s[name] for name in opened.updates if name in opened.answered_s]
    if not came or len(came) < len(late):
        return ()
    seconds, usual = (now - opened.opened_at).total_seconds() - opened.absent_s, median(came)
    if usual <= 0 or seconds <= max(SLOW * usual, usual + LEAST_S):
        return ()
    phases = {sample.key.node: sample.phase for sample in progress.values() if is_under_way(state, sample.key)}
    return tuple(
        Straggler(
            node=name, cause=_keeps(state, opened, name, phases.get(name)), seconds=seconds, ratio=seconds / usual
        )
        for name in late
    )


def waiting(state: RunState) -> tuple[Waiting, ...]:
    """Each node's share of the waiting of the closed rounds, the largest first; nodes never waited for have none.

    A round waits from the moment when half of its updates are in until the last one is. Each instant of that is shared
    equally among the contributors whose updates are not in yet. What kept a contributor is whichever took it most
    seconds beyond the round's median: its training, the line, or all the rest. A round that took late updates has
    waited for nobody.
    """
    seconds: dict[str, dict[Cause, float]] = {}
    for closed in (report for report in state.history if not report.staleness):
        spent = _spent(closed)
        usual = {cause: _usual(closed, by_node) for cause, by_node in spent.items()}
        for name, waited in _waited(closed).items():
            cause = max(_CAUSES, key=lambda cause: spent[cause].get(name, 0.0) - usual[cause])
            seconds.setdefault(name, dict.fromkeys(_CAUSES, 0.0))[cause] += waited
    each = {name: sum(by_cause.values()) for name, by_cause in seconds.items()}
    total = sum(each.values())
    return tuple(
        Waiting(
            node=name,
            seconds=each[name],
            share=each[name] / total,
            cause=max(_CAUSES, key=lambda cause: seconds[name][cause]),
        )
        for name in sorted(each, key=lambda name: (-each[name], name))
    )


def is_under_way(state: RunState, key: TaskKey) -> bool:
    """Whether telemetry of a task still counts: it has had no answer, and its round is the newest or it may be late."""
    if state.is_pending(key):
        return True
    if key.kind in ("train", "evaluate") and key.round != (state.round + 1 if key.kind == "train" else state.round):
        return False
    known = state.answers(key.kind, key.round).get(key.node)
    return known is None or (isinstance(known, Failed) and known.attempt < key.attempt)


def _is_waited_for(state: RunState, opened: RoundState, name: str, now: datetime) -> bool:
    """Whether a node is at work for the round, or is expected back."""
    node, answer = state.nodes.get(name), opened.answers.get(name)
    if node is None or isinstance(answer, Received):
        return False
    if isinstance(answer, Failed) and opened.training(name) is None:
        return False
    return node.status in ("new", "ready") or fleet.may_return(node, state.patience_s, now)


def _keeps(state: RunState, opened: RoundState, name: str, phase: str | None) -> Cause:
    """What keeps a node of the open round.

    Where its task has begun and nothing is told of it, its last round tells.
    """
    node = state.nodes[name]
    if node.status != "ready" or opened.training(name) is None:  # out of reach, or its model is on the way
        return "line"
    if phase is not None:
        return "line" if phase in ("unreachable", "saving") else "compute"
    for closed in reversed(state.history):
        if name in closed.fit_seconds:
            return "line" if closed.line_seconds.get(name, 0.0) > closed.fit_seconds[name] else "compute"
    return "compute"


def _spent(closed: RoundReport) -> dict[Cause, dict[str, float]]:
    """Seconds of a round by what they went into, and by contributor."""
    fit, line = closed.fit_seconds, closed.line_seconds
    rest = {name: took - fit.get(name, 0.0) - line.get(name, 0.0) for name, took in closed.answered_s.items()}
    return {"compute": dict(fit), "line": dict(line), "queue": rest}


def _usual(closed: RoundReport, seconds: Mapping[str, float]) -> float:
    """What something took the round's median contributor."""
    return median(seconds.get(name, 0.0) for name in closed.contributors) if closed.contributors else 0.0


def _waited(closed: RoundReport) -> dict[str, float]:
    """Seconds by node, in the order in which the later half of the updates came."""
    came = sorted((closed.answered_s[name], name) for name in closed.contributors if name in closed.answered_s)
    late = came[(len(came) + 1) // 2 - 1 :]
    waited: dict[str, float] = {}
    share = 0.0
    for left, ((before, _), (moment, name)) in zip(range(len(late) - 1, 0, -1), pairwise(late), strict=True):
        share += (moment - before) / left
        if share > 0:
            waited[name] = share
    return waited
