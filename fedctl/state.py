"""Where a run stands: `apply`, which folds one event into the `RunState`.

Pure: no clock, no disk, no network, no torch. The same events give the same state, in the live coordinator, in
`status` and after a crash; a repeated event changes nothing, and neither does a late one that a round has gone past.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import assert_never

from fedctl import answers, cycle
from fedctl.events import (
    Event,
    MessageReceived,
    ModelEvaluated,
    ModelInitialized,
    NodeDeclined,
    NodeLost,
    NodeReady,
    RoundAbandoned,
    RoundAggregated,
    RoundHeld,
    RoundOpened,
    RoundWidened,
    RunFailed,
    RunFinished,
    RunStarted,
    StepClosed,
    TaskFailed,
    TaskStarted,
    UpdateLost,
    UpdateReceived,
)
from fedctl.runstate import (
    Answer,
    Failed,
    NodeState,
    Received,
    RoundReport,
    RoundState,
    RunState,
    Said,
    Scored,
    Status,
)

__all__ = [
    "Answer",
    "Failed",
    "NodeState",
    "Received",
    "RoundReport",
    "RoundState",
    "RunState",
    "Said",
    "Scored",
    "Status",
    "apply",
    "fold",
]


CALM_S = 60.0
"""How long a node has to be ready before what befalls it is a new trouble, not more of the old one."""


def fold(events: Iterable[Event]) -> RunState:
    """The state after all these events."""
    state = RunState()
    for event in events:
        state = apply(state, event)
    return state


def apply(state: RunState, event: Event) -> RunState:
    """The state after one more event."""
    state = replace(state, last_at=event.at)
    match event:
        case RunStarted():
            return _run_started(state, event)
        case NodeReady():
            return _node_ready(state, event)
        case NodeLost():
            return _troubled(state, event, status="lost", passing=event.passing)
        case NodeDeclined():
            return _troubled(state, event, status="away", passing=True, ask_again_s=event.seconds)
        case ModelInitialized():
            return _model_initialized(state, event)
        case RoundOpened():
            return cycle.round_opened(state, event)
        case RoundWidened():
            return cycle.round_widened(state, event)
        case TaskStarted():
            return answers.task_started(state, event)
        case TaskFailed():
            return answers.task_failed(state, event)
        case UpdateReceived():
            return answers.update_received(state, event)
        case UpdateLost():
            return answers.update_lost(state, event)
        case ModelEvaluated():
            return answers.model_evaluated(state, event)
        case StepClosed():
            return cycle.step_closed(state, event)
        case MessageReceived():
            return answers.message_received(state, event)
        case RoundHeld():
            return replace(state, status="held") if state.is_open(event.round) else state
        case RoundAggregated():
            return cycle.round_aggregated(state, event)
        case RoundAbandoned():
            return cycle.round_abandoned(state, event)
        case RunFinished():
            return replace(state, status="finished", reason=event.reason or None, ended_at=event.at)
        case RunFailed():
            return replace(state, status="failed", reason=event.reason, ended_at=event.at)
        case _:
            assert_never(event)


def _model_initialized(state: RunState, event: ModelInitialized) -> RunState:
    if state.model is not None:
        return state
    return replace(
        state,
        initial=event.model,
        model=event.model,
        rest=event.rest,
        forecast=event.forecast,
        initialization=None,
    )


def _run_started(state: RunState, event: RunStarted) -> RunState:
    """Start or resume: every node has to be made ready anew, and a run that had given up gets a fresh budget."""
    gave_up = state.status == "failed"
    known = {name: state.nodes.get(name, NodeState(name=name)) for name in event.nodes}
    nodes = {
        name: replace(
            node,
            status="new",
            task=state.left_over(node),
            ready_at=None,
            trouble_at=None,
            barred="" if gave_up else node.barred,
        )
        for name, node in known.items()
    }
    renewed = replace(
        state,
        run=event.run,
        federation=event.federation,
        seed=event.seed,
        rounds=event.rounds,
        compare=event.compare,
        metric=event.metric,
        mode=event.mode,
        patience_s=event.patience_s,
        draw=event.draw,
        masked=event.masked,
        noise=event.noise,
        delta=event.delta,
        budget=event.budget,
        status="running",
        reason=None,
        started_at=state.started_at or event.at,
        resumed_at=event.at,
        ended_at=None,
        nodes=nodes,
    )
    opened = state.open
    if not gave_up:
        pause = timedelta(seconds=event.absent_s)
        later = opened and {name: at + pause for name, at in opened.asked_at.items()}
        step_at = opened.step_at + pause if opened and opened.step_at else None
        paused = opened and replace(
            opened, absent_s=opened.absent_s + event.absent_s, asked_at=later or {}, step_at=step_at
        )
        pending = {name: replace(asked, asked_at=asked.asked_at + pause) for name, asked in state.pending.items()}
        return replace(renewed, open=paused, pending=pending)
    fresh = state.initialization and replace(state.initialization, spent=0, retryable=True)
    anew = opened and dict.fromkeys(opened.asked_at, event.at)
    opened = opened and replace(
        opened,
        opened_at=event.at,
        absent_s=0.0,
        answers=_forgiven(opened.answers),
        asked_at=anew or {},
        said={step: _forgiven(said) for step, said in opened.said.items()},
        step_at=event.at,
    )
    pending = {name: replace(asked, asked_at=event.at) for name, asked in state.pending.items()}
    return replace(renewed, initialization=fresh, open=opened, pending=pending)


def _forgiven(answers: Mapping[str, Answer]) -> dict[str, Answer]:
    return {
        name: replace(answer, spent=0, retryable=True) if isinstance(answer, Failed) else answer
        for name, answer in answers.items()
    }


def _node_ready(state: RunState, event: NodeReady) -> RunState:
    node = state.nodes.get(event.node)
    since = event.at if node is None or node.status != "ready" else node.ready_at
    return state.with_node(
        event.node,
        status="ready",
        was_ready=True,
        ready_at=since,
        facts=event.facts,
        error=None,
        detail="",
        ask_again_s=0.0,
    )


def _troubled(
    state: RunState, event: NodeLost | NodeDeclined, *, status: str, passing: bool, ask_again_s: float = 0.0
) -> RunState:
    """A node cannot be used for now. What it works on goes on there, and is taken up with its next start."""
    node = state.nodes.get(event.node)
    if node is None:
        return state
    was_calm = node.status == "ready" and node.ready_at is not None and _seconds(node.ready_at, event.at) >= CALM_S
    is_new = was_calm or node.trouble_at is None or (node.status == "away" and status == "lost")  # it was no fault yet
    return state.with_node(
        event.node,
        status=status,
        error=event.reason,
        ready_at=None,
        trouble_at=event.at if is_new else node.trouble_at,
        asked_at=event.at,
        passing=passing,
        ask_again_s=ask_again_s,
    )


def _seconds(since: datetime, until: datetime) -> float:
    return (until - since).total_seconds()
