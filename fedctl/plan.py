"""What should be in flight now: `plan`, the whole protocol of a run, in the order in which a run happens.

Pure: the same state gives the same answer, nothing is remembered between calls. The coordinator performs each action
whose `key` is not yet in flight; every action ends in an event that changes the plan.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from fedctl import buffered, fleet, sampling, secure
from fedctl.actions import Action, Cancel, Finish, GiveUp, OpenRound, Perform, Prepare, WidenRound
from fedctl.asking import base_of, close, few, in_time, is_awaited, left_s, next_attempt, tasks, too_few
from fedctl.events import UNNEEDED
from fedctl.federation import Federation
from fedctl.records import COORDINATOR, Blob, Kind, TaskKey
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
        act = secure.go_on if state.open.secure else buffered.go_on if state.open.max_staleness else _round
        coming = act(state, state.open, federation, now, hold=hold)
    elif any(node.status == "new" for node in state.nodes.values()):
        coming = []
    elif state.round < federation.rounds and not _is_spent(state, federation):
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
    return tasks(
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
        wanted = len(nodes) if sampling.is_by_coin(federation) else min(fleet.wanted(federation), len(nodes))
        is_secure = federation.privacy.is_secure
        return [OpenRound(round=number, nodes=nodes, wanted=wanted, quorum=quorum, secure=is_secure)]
    away = [name for name, node in state.nodes.items() if node.status == "away" and not node.barred]
    if sampling.is_by_coin(federation):
        away = list(sampling.drawn(federation, number, state.draw, away))
    if len(nodes) + len(away) >= quorum:
        return []
    others = [
        f"{node.name}: {node.barred or node.error}"
        for node in state.nodes.values()
        if node.status == "lost" or node.barred
    ]
    return [GiveUp(reason=f"round {number} needs {quorum} nodes, and {len(nodes)} can be had ({few(others)})")]


def _round(state: RunState, opened: RoundState, federation: Federation, now: datetime, *, hold: bool) -> list[Action]:
    if len(opened.updates) >= opened.wanted:
        return close(opened, hold=hold)
    quorum = fleet.quorum(federation)
    left = left_s(state, federation, opened.opened_at + timedelta(seconds=opened.absent_s), now)
    late, seconds = left is not None and left <= 0, in_time(federation, left)
    base = base_of(state)
    asked = tasks(state, federation, "train", opened.number, base, late=late, nodes=opened.nodes, seconds=seconds)
    if asked or (not late and is_awaited(state, opened.answers, opened.nodes, federation, now)):
        return asked
    if len(opened.updates) >= quorum:
        return close(opened, hold=hold)
    if not late:
        missing = quorum - len(opened.updates)
        can_widen = not sampling.is_counted(federation)
        spare = fleet.drawn(federation, opened.number, set(fleet.ready(state)) - set(opened.nodes))
        if spare and can_widen:
            return [WidenRound(round=opened.number, nodes=tuple(spare[:missing]))]
        names = state.nodes if can_widen else opened.nodes
        if missing <= sum(_may_still_answer(state, opened, federation, name) for name in names):
            return []
    return [too_few(state, opened, opened.nodes, quorum)]


def _may_still_answer(state: RunState, opened: RoundState, federation: Federation, name: str) -> bool:
    """Whether a node that its owner does not want used now could give the round an update later."""
    attempt = next_attempt(opened.answers.get(name), federation.schedule.attempts)
    return state.nodes[name].status == "away" and attempt is not None


def _is_lacking(state: RunState, federation: Federation, now: datetime, kind: Kind, names: Iterable[str]) -> bool:
    """Whether one of these nodes has not done the last task of a kind and may come back before patience ends."""
    return is_awaited(state, state.answers(kind, state.round), names, federation, now)


def _closing(state: RunState, federation: Federation, now: datetime) -> list[Action]:
    """When all have scored the last model: train each node alone, score all these models everywhere, if asked for.

    Before them each node fine-tunes it for itself, if asked for. One after the other, each with the nodes that may come
    back.
    """
    if not _is_scoring_late(state, federation, now) and _is_lacking(state, federation, now, "evaluate", state.nodes):
        return []
    if federation.finetune:
        late = _is_scoring_late(state, federation, now, times=2)
        tuning = tasks(state, federation, "finetune", state.round, {"global": _model(state)}, late=late)
        if tuning or (not late and _is_lacking(state, federation, now, "finetune", state.nodes)):
            return tuning
    if not federation.compare:
        return [_finish(state, federation)]
    passes = {name: node.contributions for name, node in state.nodes.items() if node.contributions}
    alone = tasks(state, federation, "alone", 0, {"base": _initial(state)}, nodes=passes, passes=passes)
    if alone or _is_lacking(state, federation, now, "alone", passes):
        return alone
    models = {f"alone/{name}": a.update for name, a in sorted(state.alone.items()) if isinstance(a, Received)}
    compared = tasks(state, federation, "compare", state.round, {"global": _model(state), **models})
    return compared or (
        [] if _is_lacking(state, federation, now, "compare", state.nodes) else [_finish(state, federation)]
    )


def _is_spent(state: RunState, federation: Federation) -> bool:
    """Whether one more round would spend more than the run may."""
    dp = federation.privacy.differential_privacy
    most = dp.epsilon if dp else None
    return most is not None and state.epsilon_next is not None and state.epsilon_next > most


def _finish(state: RunState, federation: Federation) -> Finish | GiveUp:
    if state.history and not any(closed.contributors for closed in state.history):
        return GiveUp(reason="no round came to a model: their masks did not come off")
    if state.round == federation.rounds or not _is_spent(state, federation):
        return Finish()
    dp = federation.privacy.differential_privacy
    budget = dp.epsilon if dp else None
    return Finish(
        reason=f"its privacy budget is spent: ε is {state.epsilon or 0:.3g}, and one more round would make it "
        f"{state.epsilon_next:.3g} of {budget:g}"
    )


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
