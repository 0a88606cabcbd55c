"""What the events of rounds do to the state: one opens, asks more nodes, and its updates become a model.

Pure, as `state.apply` is, whose part they are. A round with a `max_staleness` takes updates of trainings that began for
earlier ones: what is asked and not answered when it closes stays pending, and what came beyond those that it took is
carried into the next.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from fedctl.events import RoundAbandoned, RoundAggregated, RoundOpened, RoundWidened, StepClosed
from fedctl.records import TaskKey
from fedctl.runstate import Failed, NodeState, Pending, Received, RoundReport, RoundState, RunState


def round_opened(state: RunState, event: RoundOpened) -> RunState:
    if event.round != state.round + 1 or state.open is not None:
        return state
    opened = RoundState(
        number=event.round,
        opened_at=event.at,
        nodes=event.nodes,
        wanted=event.wanted or len(event.nodes),
        quorum=event.quorum or 1,
        answers=state.carried,
        answered_s=dict.fromkeys(state.carried, 0.0),
        asked_at=dict.fromkeys(event.nodes, event.at),
        max_staleness=event.max_staleness,
        secure=event.secure,
        step_at=event.at,
    )
    return replace(state, open=opened, carried={})


def round_widened(state: RunState, event: RoundWidened) -> RunState:
    opened = state.open
    if opened is None or opened.number != event.round:
        return state
    added = tuple(name for name in event.nodes if name not in opened.nodes)
    asked_at = {**opened.asked_at, **dict.fromkeys(added, event.at)}
    return replace(state, open=replace(opened, nodes=opened.nodes + added, asked_at=asked_at))


def step_closed(state: RunState, event: StepClosed) -> RunState:
    opened = state.open
    if opened is None or opened.number != event.round or event.step in opened.steps:
        return state
    return replace(state, open=replace(opened, steps={**opened.steps, event.step: event.nodes}, step_at=event.at))


def round_aggregated(state: RunState, event: RoundAggregated) -> RunState:
    if state.open is None or event.round != state.open.number:
        return state
    opened, number = state.open, event.round
    is_buffered = opened.max_staleness > 0
    told = {name: one for name, one in opened.updates.items() if name in event.contributors or not is_buffered}
    report = RoundReport(
        number=number,
        nodes=opened.nodes,
        contributors=event.contributors,
        failed=tuple(name for name in sorted({*opened.nodes, *opened.answers}) if _has_failed(state, opened, name)),
        model=event.model,
        memory=event.memory,
        difference=event.difference,
        epsilon=event.epsilon,
        opened_at=opened.opened_at,
        closed_at=event.at,
        answered_s={name: opened.answered_s[name] for name in told},
        fit_seconds={name: update.seconds for name, update in told.items()},
        line_seconds={name: update.line_s for name, update in told.items()},
        partial={name: update.steps for name, update in told.items() if update.partial},
        bytes=opened.bytes,
        staleness={name: number - update.key.round for name, update in told.items()} if is_buffered else {},
    )
    goes_on = number < state.rounds
    return replace(
        state,
        nodes=_kept(_struck(state.nodes, opened), opened, event.contributors),
        round=number,
        model=event.model,
        memory=event.memory,
        difference=event.difference,
        epsilon=event.epsilon if event.epsilon is not None else state.epsilon,
        epsilon_next=event.epsilon_next,
        previous=state.model if event.difference else None,
        status="running" if state.status == "held" else state.status,
        open=None,
        pending=_pending(state, opened) if goes_on else {},
        carried=_carried(opened, event.contributors) if goes_on else {},
        history=(*state.history, report),
    )


def round_abandoned(state: RunState, event: RoundAbandoned) -> RunState:
    """A round of which the model has nothing."""
    if state.model is None or not state.is_open(event.round):
        return state
    nothing = RoundAggregated(
        at=event.at,
        round=event.round,
        model=state.model,
        contributors=(),
        memory=state.memory,
        epsilon=event.epsilon,
        epsilon_next=event.epsilon_next,
    )
    closed = round_aggregated(state, nothing)
    *before, report = closed.history
    closed = replace(closed, history=(*before, replace(report, failed=tuple(sorted({*report.failed, *event.nodes})))))
    for name in event.nodes:
        closed = closed.with_node(name, barred=event.reason)
    return closed


def _pending(state: RunState, closed: RoundState) -> dict[str, Pending]:
    """The trainings that are not answered yet, as far as they count in the next round."""
    asked = dict(state.pending)
    for name in closed.nodes:
        begun = closed.training(name)
        if begun or name not in closed.answers:
            asked[name] = Pending(
                key=begun or TaskKey(round=closed.number, node=name),
                asked_at=closed.asked_at[name],
                begun_at=closed.begun[name][1] if begun else None,
            )
    return {name: one for name, one in asked.items() if name in state.nodes and _is_in_time(closed, one.key)}


def _carried(closed: RoundState, contributors: Collection[str]) -> dict[str, Received]:
    """The updates that the round did not take, in the order in which they came."""
    return {
        name: answer
        for name, answer in closed.answers.items()
        if isinstance(answer, Received) and name not in contributors and _is_in_time(closed, answer.key)
    }


def _is_in_time(closed: RoundState, key: TaskKey) -> bool:
    """Whether the round after this one takes an update of that training."""
    return closed.number + 1 - key.round <= closed.max_staleness


def _kept(nodes: dict[str, NodeState], closed: RoundState, contributors: Collection[str]) -> dict[str, NodeState]:
    """What a contributor's training left on it counts from now on, and no other's."""
    taken = {name: update.key for name, update in closed.updates.items() if name in contributors and name in nodes}
    return {**nodes, **{name: replace(nodes[name], kept=key) for name, key in taken.items()}}


def _has_failed(state: RunState, closed: RoundState, name: str) -> bool:
    """Whether a node owed the round an update; one whose update was not needed any more did not."""
    answer, node = closed.answers.get(name), state.nodes.get(name)
    if closed.max_staleness:
        return isinstance(answer, Failed)
    return isinstance(answer, Failed) or (answer is None and (node is None or node.status != "ready"))


def _struck(nodes: Mapping[str, NodeState], closed: RoundState) -> dict[str, NodeState]:
    """A node that failed in the round has a strike more; one that gave its update has none."""

    def judged(node: NodeState) -> NodeState:
        match closed.answers.get(node.name):
            case Received():
                return replace(node, strikes=0)
            case Failed() if closed.max_staleness and closed.training(node.name):  # it is at work on a further attempt
                return node
            case Failed():
                return replace(node, strikes=node.strikes + 1, struck=closed.number)
            case _:
                return node

    return {name: judged(node) for name, node in nodes.items()}
