"""What a run does next whose rounds close with the first updates that come, whichever models these began from.

FedBuff: Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba: Federated Learning with Buffered Asynchronous
Aggregation, 2022 (arXiv:2106.06639). A node that is not done when a round closes goes on with the model that it has,
and its update counts in a later round. One node gives one round at most one update: whoever has answered waits for the
next model, so that a round's updates are those of so many nodes.

Pure, as `plan` is, whose other half this is.
"""

from collections.abc import Collection, Mapping
from datetime import datetime

from fedctl import fleet
from fedctl.actions import Action, GiveUp, OpenRound, WidenRound
from fedctl.asking import called_off, close, few, in_time, left_s, next_attempt, perform, too_few
from fedctl.federation import Federation
from fedctl.records import TaskKey
from fedctl.runstate import Answer, NodeState, Received, RoundState, RunState


def opening(state: RunState, federation: Federation, now: datetime) -> list[Action]:
    """Open the next round for updates that are in, trainings that go on, and as many nodes as may train beside them."""
    number, quorum = state.round + 1, fleet.quorum(federation)
    able = [name for name in state.nodes if name in state.carried or _may_answer(state, federation, {}, name, now)]
    if len(able) >= quorum:
        nodes = _more(state, federation, number, asked=(), answers=state.carried, now=now)
        opened = OpenRound(
            round=number,
            nodes=tuple(sorted(nodes)),
            wanted=fleet.wanted(federation),
            quorum=quorum,
            max_staleness=federation.schedule.lag,
        )
        return [opened]
    if len(able) + sum(node.status == "away" for node in state.nodes.values()) >= quorum:
        return []
    others = [f"{node.name}: {node.error}" for node in state.nodes.values() if node.status == "lost"]
    return [GiveUp(reason=f"round {number} needs {quorum} nodes, and {len(able)} can be had ({few(others)})")]


def go_on(state: RunState, opened: RoundState, federation: Federation, now: datetime, *, hold: bool) -> list[Action]:
    """Train on all nodes that are asked, and ask others wherever one has answered; close with as many as are wanted."""
    if len(opened.updates) >= opened.wanted:
        return close(opened, hold=hold)
    actions = _trainings(state, opened, federation, now)
    more = _more(state, federation, opened.number, asked=opened.nodes, answers=opened.answers, now=now)
    if more:
        actions.append(WidenRound(round=opened.number, nodes=tuple(sorted(more))))
    attempts = federation.schedule.attempts
    absent = [name for name in state.nodes if next_attempt(opened.answers.get(name), attempts) is not None]
    if actions or any(fleet.is_expected(state.nodes[name], federation, now) for name in absent):
        return actions
    if len(opened.updates) >= opened.quorum:
        return close(opened, hold=hold)
    away = [name for name in absent if state.nodes[name].status == "away"]
    if len(opened.updates) + len(away) >= opened.quorum:
        return []
    return [too_few(state, opened, state.nodes, opened.quorum)]


def scorers(state: RunState) -> list[str]:
    """The nodes to be asked what they think of the newest model: of the last one all.

    Of an earlier one those that neither train a model before it nor score one: slow nodes would never be done.
    """

    def is_free(node: NodeState) -> bool:
        scores_another = node.task is not None and node.task.kind == "evaluate" and node.task.round < state.round
        return node.name not in state.pending and not scores_another

    return [name for name, node in state.nodes.items() if state.round >= state.rounds or is_free(node)]


def _trainings(state: RunState, opened: RoundState, federation: Federation, now: datetime) -> list[Action]:
    """What each node that is here trains, on the model of the round that it was asked in; or its end, if it is late."""
    actions: list[Action] = []
    for name in fleet.ready(state):
        attempt = next_attempt(opened.answers.get(name), federation.schedule.attempts)
        if name in state.pending:
            key, since = state.pending[name].key, state.pending[name].asked_at
        elif name in opened.nodes and attempt is not None:
            key, since = TaskKey(round=opened.number, node=name, attempt=attempt), opened.asked_at[name]
        else:
            continue
        left = left_s(state, federation, since, now)
        if left is not None and left <= 0:
            actions.append(called_off(federation, key))
        else:
            base = {"base": state.model_of(key.round - 1)}
            actions.append(perform(state, federation, key, base, seconds=in_time(federation, left)))
    return actions


def _more(
    state: RunState,
    federation: Federation,
    number: int,
    *,
    asked: Collection[str],
    answers: Mapping[str, Answer],
    now: datetime,
) -> list[str]:
    """The nodes to be asked now, beside those that were asked: as many as may train at a time.

    None while some are being made ready, for whom is asked must not depend on who is the first. Those that rest are
    asked before the quorum is missed.
    """
    if any(node.status == "new" for node in state.nodes.values()):
        return []
    schedule = federation.schedule
    at_work = {*asked, *state.pending}
    free = [
        name
        for name in fleet.ready(state)
        if name not in at_work and next_attempt(answers.get(name), schedule.attempts) is not None
    ]
    busy = sum(
        name in state.nodes
        and state.nodes[name].status == "ready"
        and next_attempt(answers.get(name), schedule.attempts) is not None
        for name in at_work
    )
    rested = [name for name in free if fleet.is_rested(state.nodes[name], number)]
    resting = set(free) - set(rested)
    others = [name for name in state.nodes if name not in resting]
    sure = sum(
        isinstance(answers.get(name), Received) or _may_answer(state, federation, answers, name, now) for name in others
    )
    among = rested if sure >= fleet.quorum(federation) else free
    room = len(among) if schedule.concurrency is None else max(0, schedule.concurrency - busy)
    return fleet.drawn(federation, number, among)[:room]


def _may_answer(
    state: RunState, federation: Federation, answers: Mapping[str, Answer], name: str, now: datetime
) -> bool:
    """Whether a node could still give the round an update: it is here, or may come back."""
    node = state.nodes[name]
    is_there = node.status == "ready" or fleet.is_expected(node, federation, now)
    return is_there and next_attempt(answers.get(name), federation.schedule.attempts) is not None
