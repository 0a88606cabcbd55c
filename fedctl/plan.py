"""What should be in flight now: `plan`, the whole protocol of a run, in the order in which a run happens.

Pure: the same state gives the same answer, nothing is remembered between calls. The coordinator performs each action
whose `key` is not yet in flight; every action ends in an event that changes the plan.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from fedctl.federation import Federation, needed
from fedctl.records import COORDINATOR, Blob, Kind, TaskKey
from fedctl.state import Answer, Failed, Received, RoundState, RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Reach a node and make it ready."""

    node: str

    @property
    def key(self) -> str:
        return f"prepare/{self.node}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Perform:
    """Have a node do a task on these models; `passes` multiplies the epochs (alone, all rounds are one task)."""

    task: TaskKey
    models: Mapping[str, Blob] = field(default_factory=dict)
    passes: int = 1

    @property
    def key(self) -> str:
        return str(self.task)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Stop a task whose round's deadline has passed."""

    task: TaskKey

    @property
    def key(self) -> str:
        return f"cancel/{self.task}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRound:
    """Open a round with this cohort."""

    round: int
    nodes: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"open/{self.round}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """Make the updates of these contributors the next model."""

    round: int
    contributors: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"aggregate/{self.round}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Stop here and wait for a manual aggregation."""

    round: int

    @property
    def key(self) -> str:
        return f"hold/{self.round}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """All is done."""

    key: str = "finish"


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """The run cannot go on."""

    reason: str
    key: str = "give up"


Action = Prepare | Perform | Cancel | OpenRound | Aggregate | Hold | Finish | GiveUp


def plan(state: RunState, federation: Federation, now: datetime, *, hold: bool = False) -> list[Action]:
    """What should be in flight at `now` (UTC); `hold` stops after gathering each round."""
    if state.is_over:
        return []
    if state.model is None or any(node.status == "new" for node in state.nodes.values()):
        return _beginning(state, federation)
    if not _reachable(state):
        return [GiveUp(reason=f"no node is left: {_why(state)}")]
    evaluations = _evaluations(state, federation, now)
    if state.open is not None:
        return [*evaluations, *_round(state, state.open, federation, now, hold=hold)]
    if state.round < federation.rounds:
        number = state.round + 1
        return [*evaluations, OpenRound(round=number, nodes=cohort(federation, number, _reachable(state)))]
    return evaluations or _closing(state, federation) or [Finish()]


def cohort(federation: Federation, round: int, reachable: Iterable[str]) -> tuple[str, ...]:
    """The nodes of a round, drawn from those reachable, seeded by (seed, round)."""
    names = sorted(reachable)
    wanted = needed(federation.schedule.cohort, len(federation.nodes))
    if wanted >= len(names):
        return tuple(names)
    return tuple(sorted(random.Random(f"{federation.seed}/{round}").sample(names, wanted)))


def _beginning(state: RunState, federation: Federation) -> list[Action]:
    """Make nodes ready and build the first model, all at once."""
    actions: list[Action] = [Prepare(node=node.name) for node in state.nodes.values() if node.status == "new"]
    if state.model is None:
        attempt = _next_attempt(state.initialization, federation.schedule.attempts)
        if attempt is None:
            return [GiveUp(reason=f"the first model could not be built: {_reason(state.initialization)}")]
        actions.append(Perform(task=TaskKey(round=0, node=COORDINATOR, kind="initialize", attempt=attempt)))
    return actions


def _evaluations(state: RunState, federation: Federation, now: datetime) -> list[Action]:
    """Validate the newest model on every node's own data; it overlaps with the next round's training."""
    late = _late(state, federation, state.history[-1].closed_at if state.history else None, now)
    return _tasks(state, federation, "evaluate", state.round, {"global": _model(state)}, late=late)


def _round(state: RunState, opened: RoundState, federation: Federation, now: datetime, *, hold: bool) -> list[Action]:
    late = _late(state, federation, opened.opened_at, now)
    tasks = _tasks(state, federation, "train", opened.number, {"base": _model(state)}, late=late, nodes=opened.nodes)
    if tasks:
        return tasks
    updates = opened.updates
    quorum = needed(federation.schedule.quorum, len(opened.nodes))
    if len(updates) < quorum:
        missing = _few([_missing(state, opened, name) for name in opened.nodes if name not in updates])
        return [GiveUp(reason=f"round {opened.number} has {len(updates)} of the {quorum} updates it needs ({missing})")]
    if hold:
        return [Hold(round=opened.number)]
    return [Aggregate(round=opened.number, contributors=tuple(updates))]


def _closing(state: RunState, federation: Federation) -> list[Action]:
    """Where it is asked for: train each node alone, then score all these models and the global one everywhere."""
    if not federation.compare:
        return []
    passes = {name: node.contributions for name, node in state.nodes.items() if node.contributions}
    if alone := _tasks(state, federation, "alone", 0, {"base": _initial(state)}, nodes=passes, passes=passes):
        return alone
    models = {f"alone/{name}": a.update for name, a in sorted(state.alone.items()) if isinstance(a, Received)}
    return _tasks(state, federation, "compare", state.round, {"global": _model(state), **models})


def _tasks(
    state: RunState,
    federation: Federation,
    kind: Kind,
    round: int,
    models: Mapping[str, Blob],
    *,
    late: bool = False,
    nodes: Iterable[str] | None = None,
    passes: Mapping[str, int] | None = None,
) -> list[Action]:
    """One task a reachable node that has not answered yet; past the deadline those are cancelled instead."""
    answers = state.answers(kind, round)
    wanted = None if nodes is None else set(nodes)
    actions: list[Action] = []
    for name in _reachable(state):
        if wanted is not None and name not in wanted:
            continue
        attempt = _next_attempt(answers.get(name), federation.schedule.attempts)
        if attempt is None:
            continue
        key = TaskKey(round=round, node=name, kind=kind, attempt=attempt)
        actions.append(
            Cancel(task=key) if late else Perform(task=key, models=models, passes=(passes or {}).get(name, 1))
        )
    return actions


def _next_attempt(answer: Answer | None, attempts: int) -> int | None:
    """The number of the next attempt, or None when there is an answer or the budget is spent."""
    match answer:
        case None:
            return 1
        case Failed(retryable=True) if answer.spent < attempts:
            return answer.attempt + 1
        case _:
            return None


def _late(state: RunState, federation: Federation, began: datetime | None, now: datetime) -> bool:
    """True past the deadline, which counts from a resume anew: what nodes did without a coordinator is still wanted."""
    deadline, since = federation.schedule.deadline_s, max(filter(None, (began, state.resumed_at)), default=now)
    return deadline is not None and (now - since).total_seconds() >= deadline


def _model(state: RunState) -> Blob:
    if state.model is None:
        raise AssertionError("planned before the first model was built")
    return state.model


def _initial(state: RunState) -> Blob:
    if state.initial is None:
        raise AssertionError("planned before the first model was built")
    return state.initial


def _reachable(state: RunState) -> list[str]:
    return [name for name, node in state.nodes.items() if node.status == "ready"]


def _missing(state: RunState, opened: RoundState, name: str) -> str:
    """Why a node of the round has no update in it."""
    answer, node = opened.answers.get(name), state.nodes.get(name)
    reason = answer.reason if isinstance(answer, Failed) else node and node.error
    return f"{name}: {reason or 'it gave no answer'}"


def _why(state: RunState) -> str:
    return _few([f"{node.name}: {node.error}" for node in state.nodes.values() if node.error]) or "none was given"


def _few(reasons: Sequence[str], most: int = 3) -> str:
    more = f"; and {len(reasons) - most} more" if len(reasons) > most else ""
    return "; ".join(reasons[:most]) + more


def _reason(failed: Failed | None) -> str:
    return failed.reason if failed else "no attempt was allowed"
