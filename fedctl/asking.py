"""What rounds of either kind have in common: which attempt a task is, how long it has, and how a round ends.

Pure, as `plan` is, whose part it is.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from fedctl import fleet
from fedctl.actions import Action, Aggregate, Cancel, GiveUp, Hold, Perform
from fedctl.federation import Federation
from fedctl.records import DIFFERENCE, MEMORY, NEWEST, REST, Blob, Kind, TaskKey
from fedctl.runstate import Answer, Failed, RoundState, RunState

PARTIAL = 0.9
"""The share of a deadline after which a node hands in what it has done; the rest is for the way."""
GRACE_S = 60.0
"""A resume gives this long at least, so that what nodes finished without a coordinator is taken."""


def base_of(state: RunState) -> dict[str, Blob]:
    """What a training begins from: the newest model, and what its strategy sends beside it."""
    if state.model is None:
        raise AssertionError("planned before the first model was built")
    return {"base": state.model, **({MEMORY: state.memory} if state.memory else {})}


def next_attempt(answer: Answer | None, attempts: int) -> int | None:
    """The number of the next attempt, or None when there is an answer or the budget is spent."""
    match answer:
        case None:
            return 1
        case Failed(retryable=True) if answer.spent < attempts:
            return answer.attempt + 1
        case _:
            return None


def left_s(state: RunState, federation: Federation, since: datetime, now: datetime) -> float | None:
    """Seconds to a deadline that counts from `since`, None without one; a resume gives some more."""
    deadline_s = federation.schedule.deadline_s
    return None if deadline_s is None else left_of(deadline_s, state, since, now)


def left_of(deadline_s: float, state: RunState, since: datetime, now: datetime) -> float:
    """Seconds that are left of so many from `since` on; a resume gives some more."""
    left = deadline_s - (now - since).total_seconds()
    if state.resumed_at is None:
        return left
    return max(left, min(GRACE_S, deadline_s) - (now - state.resumed_at).total_seconds())


def in_time(federation: Federation, left: float | None) -> float | None:
    """After how many seconds a training hands in what it has done, of those that are left; None: it is not to."""
    if left is None or not federation.schedule.partial:
        return None
    return max(1.0, left - (1 - PARTIAL) * (federation.schedule.deadline_s or 0.0))


def perform(
    state: RunState,
    federation: Federation,
    key: TaskKey,
    models: Mapping[str, Blob],
    *,
    passes: int = 1,
    seconds: float | None = None,
) -> Action:
    """Have the task done, with the rest of the model beside it, on what the node has kept where its kind goes on."""
    labelled = {**models, **({REST: state.rest} if state.rest else {})}
    previous = None
    if state.difference and any(models.get(label) == state.model for label in NEWEST):
        labelled[DIFFERENCE], previous = state.difference, state.previous
    goes_on = federation.keeps and key.kind in ("train", "evaluate", "finetune")
    kept = state.nodes[key.node].kept if goes_on else None
    steps = state.open.steps if state.open and state.open.number == key.round else {}
    return Perform(
        task=key,
        models=labelled,
        previous=previous,
        passes=passes,
        kept=kept,
        seconds=seconds,
        steps=steps,
        spent=state.nodes[key.node].spent,
    )


def tasks(
    state: RunState,
    federation: Federation,
    kind: Kind,
    round: int,
    models: Mapping[str, Blob],
    *,
    late: bool = False,
    nodes: Iterable[str] | None = None,
    passes: Mapping[str, int] | None = None,
    seconds: float | None = None,
    overdue: str = "",
) -> list[Action]:
    """One task a ready node that has not answered yet; past the deadline those are cancelled instead, as `overdue`."""
    answers = state.answers(kind, round)
    wanted = None if nodes is None else set(nodes)
    actions: list[Action] = []
    for name in fleet.ready(state):
        if wanted is not None and name not in wanted:
            continue
        attempt = next_attempt(answers.get(name), federation.schedule.attempts)
        if attempt is None:
            continue
        key = TaskKey(round=round, node=name, kind=kind, attempt=attempt)
        if late:
            actions.append(called_off(federation, key, overdue))
        else:
            times = (passes or {}).get(name, 1)
            actions.append(perform(state, federation, key, models, passes=times, seconds=seconds))
    return actions


def called_off(federation: Federation, key: TaskKey, reason: str = "") -> Action:
    """Stop a task whose time is over; unless a `reason` says otherwise, that of its round."""
    return Cancel(task=key, reason=reason or f"the deadline of {federation.schedule.deadline_s:.0f} s passed")


def is_awaited(
    state: RunState, answers: Mapping[str, Answer], names: Iterable[str], federation: Federation, now: datetime
) -> bool:
    """Whether one of these nodes has not answered and may come back before patience ends."""
    attempts = federation.schedule.attempts
    return any(
        next_attempt(answers.get(name), attempts) is not None
        and name in state.nodes
        and fleet.is_expected(state.nodes[name], federation, now)
        for name in names
    )


def close(opened: RoundState, *, hold: bool) -> list[Action]:
    """Make a model of the first updates of a round, or wait for a person to."""
    if hold:
        return [Hold(round=opened.number)]
    return [Aggregate(round=opened.number, contributors=opened.first)]


def too_few(state: RunState, opened: RoundState, names: Iterable[str], quorum: int) -> GiveUp:
    """The end of a run whose round cannot have its quorum; it says why these nodes have no update in it."""
    absent = few([_missing(state, opened, name) for name in names if name not in opened.updates])
    have = len(opened.updates)
    return GiveUp(reason=f"round {opened.number} has {have} of the {quorum} updates it needs ({absent})")


def few(reasons: Sequence[str], most: int = 3) -> str:
    """The first of these reasons, and how many more there are."""
    more = f"; and {len(reasons) - most} more" if len(reasons) > most else ""
    return "; ".join(reasons[:most]) + more


def _missing(state: RunState, opened: RoundState, name: str) -> str:
    answer, node = opened.answers.get(name), state.nodes.get(name)
    reason = answer.reason if isinstance(answer, Failed) else node and node.error
    return f"{name}: {reason or 'it gave no answer'}"
