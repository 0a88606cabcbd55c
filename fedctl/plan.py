"""What should be in flight now: `plan`, the whole protocol of a run, in the order in which a run happens.

Pure: the same state gives the same answer, nothing is remembered between calls. The coordinator performs each action
whose `key` is not yet in flight; every action ends in an event that changes the plan.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from fedctl import buffered, fleet
from fedctl.actions import Action, Cancel, Finish, GiveUp, OpenRound, Perform, Prepare, WidenRound
from fedctl.asking import called_off, close, few, in_time, left_s, next_attempt, perform, too_few
from fedctl.events import UNNEEDED
from fedctl.federation import Federation
from fedctl.records import COORDINATOR, MEMORY, Blob, Kind, TaskKey
from fedctl.state import Failed, Received, RoundState, RunState


def plan(state: RunState, federation: Federation, now: datetime, *, hold: bool = False) -> list[Action]:
    """What should be in flight at `now` (UTC); `hold` stops after gathering each round."""
    if state.is_over:
        return []
    work = _work(state, federation, now, hold=hold)
    if any(isinstance(action, Finish | GiveUp) for action in work):
        return work
    return [*_preparations(state, federation, now), *_left_over(state), *work]


def _work(state: RunState, federation: Federation, now: datetime, *, hold: bool) -> list[Action]:
    """What the run is about; nothing where it waits."""
    if state.model is None:
        return [_initialization(state, federation)]
    evaluations = _evaluations(state, federation, now)
    if state.open is not None:
        act = buffered.go_on if state.open.max_staleness else _round
        coming = act(state, state.open, federation, now, hold=hold)
    elif any(node.status == "new" for node in state.nodes.values()):
        coming = []
    elif state.round < federation.rounds:
        coming = (
            buffered.opening(state, federation, now) if federation.schedule.lag else _opening(state, federation, now)
        )
    else:
        return evaluations or _closing(state, federation, now)
    return coming if any(isinstance(action, GiveUp) for action in coming) else [*evaluations, *coming]


def _preparations(state: RunState, federation: Federation, now: datetime) -> list[Action]:
    """Make nodes ready, all at once; those that are away are looked for now and then."""
    return [Prepare(node=node.name) for node in state.nodes.values() if fleet.is_due(node, federation.seed, now)]


def _left_over(state: RunState) -> list[Action]:
    """What a node still trains for a round that was closed without it."""
    ready = (node for node in state.nodes.values() if node.status == "ready")
    return [Cancel(task=task, reason=UNNEEDED) for task in map(state.left_over, ready) if task]


def _initialization(state: RunState, federation: Federation) -> Action:
    attempt = next_attempt(state.initialization, federation.schedule.attempts)
    if attempt is None:
        return GiveUp(reason=f"the first model could not be built: {_reason(state.initialization)}")
    return Perform(task=TaskKey(round=0, node=COORDINATOR, kind="initialize", attempt=attempt))


def _evaluations(state: RunState, federation: Federation, now: datetime) -> list[Action]:
    """Validate the newest model on every node's own data; it overlaps with the next round's training."""
    return _tasks(
        state,
        federation,
        "evaluate",
        state.round,
        {"global": _model(state)},
        late=_is_scoring_late(state, federation, now),
        nodes=buffered.scorers(state) if federation.schedule.lag else None,
    )


def _opening(state: RunState, federation: Federation, now: datetime) -> list[Action]:
    """Open the next round, once there are nodes enough; nodes whose owners say "not now" are waited for."""
    number, quorum = state.round + 1, fleet.quorum(federation)
    nodes = fleet.cohort(federation, number, state, now)
    if len(nodes) >= quorum:
        return [OpenRound(round=number, nodes=nodes, wanted=min(fleet.wanted(federation), len(nodes)), quorum=quorum)]
    away = [node for node in state.nodes.values() if node.status == "away"]
    if len(nodes) + len(away) >= quorum:
        return []
    others = [f"{node.name}: {node.error}" for node in state.nodes.values() if node.status == "lost"]
    return [GiveUp(reason=f"round {number} needs {quorum} nodes, and {len(nodes)} can be had ({few(others)})")]


def _round(state: RunState, opened: RoundState, federation: Federation, now: datetime, *, hold: bool) -> list[Action]:
    if len(opened.updates) >= opened.wanted:
        return close(opened, hold=hold)
    quorum = fleet.quorum(federation)
    left = left_s(state, federation, opened.opened_at + timedelta(seconds=opened.absent_s), now)
    late, seconds = left is not None and left <= 0, in_time(federation, left)
    base = {"base": _model(state), **({MEMORY: state.memory} if state.memory else {})}
    tasks = _tasks(state, federation, "train", opened.number, base, late=late, nodes=opened.nodes, seconds=seconds)
    if tasks or (not late and _is_awaited(state, opened, federation, now)):
        return tasks
    if len(opened.updates) >= quorum:
        return close(opened, hold=hold)
    if not late:
        missing = quorum - len(opened.updates)
        spare = fleet.drawn(federation, opened.number, set(fleet.ready(state)) - set(opened.nodes))
        if spare:
            return [WidenRound(round=opened.number, nodes=tuple(spare[:missing]))]
        if missing <= sum(_may_still_answer(state, opened, federation, name) for name in state.nodes):
            return []
    return [too_few(state, opened, opened.nodes, quorum)]


def _may_still_answer(state: RunState, opened: RoundState, federation: Federation, name: str) -> bool:
    """Whether a node that its owner does not want used now could give the round an update later."""
    attempt = next_attempt(opened.answers.get(name), federation.schedule.attempts)
    return state.nodes[name].status == "away" and attempt is not None


def _is_awaited(state: RunState, opened: RoundState, federation: Federation, now: datetime) -> bool:
    """Whether a node of the round that has not answered may come back before patience ends."""
    attempts = federation.schedule.attempts
    return any(
        next_attempt(opened.answers.get(name), attempts) is not None
        and name in state.nodes
        and fleet.is_expected(state.nodes[name], federation, now)
        for name in opened.nodes
    )


def _is_lacking(state: RunState, federation: Federation, now: datetime, kind: Kind, names: Iterable[str]) -> bool:
    """Whether one of these nodes has not done the last task of a kind and may come back before patience ends."""
    answers, attempts = state.answers(kind, state.round), federation.schedule.attempts
    return any(
        next_attempt(answers.get(name), attempts) is not None and fleet.is_expected(state.nodes[name], federation, now)
        for name in names
    )


def _closing(state: RunState, federation: Federation, now: datetime) -> list[Action]:
    """When all have scored the last model: train each node alone, score all these models everywhere, if asked for.

    Before them each node fine-tunes it for itself, if asked for. One after the other, each with the nodes that may come
    back.
    """
    if not _is_scoring_late(state, federation, now) and _is_lacking(state, federation, now, "evaluate", state.nodes):
        return []
    if federation.finetune:
        late = _is_scoring_late(state, federation, now, times=2)
        tuning = _tasks(state, federation, "finetune", state.round, {"global": _model(state)}, late=late)
        if tuning or (not late and _is_lacking(state, federation, now, "finetune", state.nodes)):
            return tuning
    if not federation.compare:
        return [Finish()]
    passes = {name: node.contributions for name, node in state.nodes.items() if node.contributions}
    alone = _tasks(state, federation, "alone", 0, {"base": _initial(state)}, nodes=passes, passes=passes)
    if alone or _is_lacking(state, federation, now, "alone", passes):
        return alone
    models = {f"alone/{name}": a.update for name, a in sorted(state.alone.items()) if isinstance(a, Received)}
    compared = _tasks(state, federation, "compare", state.round, {"global": _model(state), **models})
    return compared or ([] if _is_lacking(state, federation, now, "compare", state.nodes) else [Finish()])


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
    seconds: float | None = None,
) -> list[Action]:
    """One task a ready node that has not answered yet; past the deadline those are cancelled instead."""
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
            actions.append(called_off(federation, key))
        else:
            times = (passes or {}).get(name, 1)
            actions.append(perform(state, federation, key, models, passes=times, seconds=seconds))
    return actions


def _is_scoring_late(state: RunState, federation: Federation, now: datetime, *, times: int = 1) -> bool:
    """Scores have as long as a round, from when their model was made, or from a resume anew; fine-tuning twice that.

    Those of the first model have it from when the first round opens: by then the nodes are ready.
    """
    first_at = state.open.opened_at if state.open else None
    made_at = state.history[-1].closed_at if state.history else first_at
    deadline_s = federation.schedule.deadline_s
    if deadline_s is None or made_at is None:
        return False
    return (now - max(made_at, state.resumed_at or made_at)).total_seconds() >= times * deadline_s


def _model(state: RunState) -> Blob:
    if state.model is None:
        raise AssertionError("planned before the first model was built")
    return state.model


def _initial(state: RunState) -> Blob:
    if state.initial is None:
        raise AssertionError("planned before the first model was built")
    return state.initial


def _reason(failed: Failed | None) -> str:
    return failed.reason if failed else "no attempt was allowed"
