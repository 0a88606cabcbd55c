"""Where a run stands: `apply`, which folds one event into the `RunState`.

Pure: no clock, no disk, no network, no torch. The same events give the same state, in the live coordinator, in
`status` and after a crash; a repeated event changes nothing, and neither does a late one that a round has gone past.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import assert_never

from fedctl.events import (
    Event,
    ModelEvaluated,
    ModelInitialized,
    NodeLost,
    NodeReady,
    RoundAggregated,
    RoundHeld,
    RoundOpened,
    RunFailed,
    RunFinished,
    RunStarted,
    TaskFailed,
    TaskStarted,
    Traffic,
    UpdateReceived,
)
from fedctl.records import TaskKey
from fedctl.runstate import (
    Answer,
    Failed,
    NodeState,
    Received,
    RoundReport,
    RoundState,
    RunState,
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
    "Scored",
    "Status",
    "apply",
    "fold",
]


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
            return _with_node(state, event.node, status="ready", facts=event.facts, error=None, detail="")
        case NodeLost():
            return _with_node(state, event.node, status="lost", error=event.reason, task=None)
        case ModelInitialized():
            return state if state.model else replace(state, initial=event.model, model=event.model, initialization=None)
        case RoundOpened():
            return _round_opened(state, event)
        case TaskStarted():
            return _task_started(state, event)
        case TaskFailed():
            return _task_failed(state, event)
        case UpdateReceived():
            return _update_received(state, event)
        case ModelEvaluated():
            return _model_evaluated(state, event)
        case RoundHeld():
            return replace(state, status="held") if _is_open(state, event.round) else state
        case RoundAggregated():
            return _round_aggregated(state, event)
        case RunFinished():
            return replace(state, status="finished", ended_at=event.at)
        case RunFailed():
            return replace(state, status="failed", reason=event.reason, ended_at=event.at)
        case _:
            assert_never(event)


def _run_started(state: RunState, event: RunStarted) -> RunState:
    """Start or resume: every node has to be made ready anew, and a run that had given up gets a fresh budget."""
    gave_up = state.status == "failed"
    nodes = {
        name: replace(state.nodes.get(name, NodeState(name=name)), status="new", task=None) for name in event.nodes
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
        status="running",
        reason=None,
        started_at=state.started_at or event.at,
        resumed_at=event.at,
        ended_at=None,
        nodes=nodes,
    )
    if not gave_up:
        return renewed
    fresh = state.initialization and replace(state.initialization, spent=0, retryable=True)
    opened = state.open and replace(state.open, opened_at=event.at, answers=_forgiven(state.open.answers))
    return replace(renewed, initialization=fresh, open=opened)


def _forgiven(answers: Mapping[str, Answer]) -> dict[str, Answer]:
    return {
        name: replace(answer, spent=0, retryable=True) if isinstance(answer, Failed) else answer
        for name, answer in answers.items()
    }


def _round_opened(state: RunState, event: RoundOpened) -> RunState:
    if event.round != state.round + 1 or state.open is not None:
        return state
    return replace(state, open=RoundState(number=event.round, opened_at=event.at, nodes=event.nodes))


def _task_started(state: RunState, event: TaskStarted) -> RunState:
    key = event.task
    if _is_past(state, key):
        return state
    since = state.nodes[key.node].since if key.node in state.nodes and state.nodes[key.node].task == key else event.at
    return _with_node(state, key.node, task=key, attempt=key.attempt, round=key.round, since=since)


def _task_failed(state: RunState, event: TaskFailed) -> RunState:
    key = event.task
    if _is_past(state, key):
        return state
    known = state.answers(key.kind, key.round).get(key.node)
    spent = known.spent + 1 if isinstance(known, Failed) else 1
    failed = Failed(attempt=key.attempt, spent=spent, reason=event.reason, retryable=event.retryable)
    state = _with_node(state, key.node, task=None, error=event.reason, detail=event.detail, attempt=key.attempt)
    return _answered(state, key, failed)


def _update_received(state: RunState, event: UpdateReceived) -> RunState:
    key = event.task
    if isinstance(state.answers(key.kind, key.round).get(key.node), Received):
        return state
    if key.node not in state.nodes or (key.kind == "train" and not _is_open(state, key.round)):
        return state
    received = Received(
        key=key, update=event.update, examples=event.examples, metrics=event.metrics, seconds=event.seconds
    )
    state = _answered(_worked(state, key, event.bytes), key, received)
    state = _with_node(state, key.node, error=None, detail="", accelerator=event.accelerator)
    if key.kind != "train":
        return state
    contributions = state.nodes[key.node].contributions + 1
    return _with_node(
        state,
        key.node,
        metrics=event.metrics,
        seconds=event.seconds,
        examples=event.examples,
        contributions=contributions,
    )


def _model_evaluated(state: RunState, event: ModelEvaluated) -> RunState:
    key = event.task
    if key.node not in state.nodes or isinstance(state.answers(key.kind, key.round).get(key.node), Scored):
        return state
    scored = Scored(scores=event.scores, seconds=event.seconds)
    state = _answered(_worked(state, key, event.bytes), key, scored)
    if key.kind == "evaluate" and "global" in event.scores:
        state = _with_node(state, key.node, score=event.scores["global"])
    return state


def _round_aggregated(state: RunState, event: RoundAggregated) -> RunState:
    if state.open is None or event.round != state.open.number:
        return state
    opened = state.open
    report = RoundReport(
        number=event.round,
        contributors=event.contributors,
        failed=tuple(sorted(set(opened.nodes) - set(event.contributors))),
        model=event.model,
        opened_at=opened.opened_at,
        closed_at=event.at,
        fit_seconds={name: update.seconds for name, update in opened.updates.items()},
        bytes=opened.bytes,
    )
    return replace(
        state,
        round=event.round,
        model=event.model,
        status="running" if state.status == "held" else state.status,
        open=None,
        history=(*state.history, report),
    )


def _answered(state: RunState, key: TaskKey, answer: Answer) -> RunState:
    match key.kind:
        case "train":
            opened = state.open and replace(state.open, answers={**state.open.answers, key.node: answer})
            return replace(state, open=opened)
        case "evaluate":
            scored = {**state.evaluations.get(key.round, {}), key.node: answer}
            return replace(state, evaluations={**state.evaluations, key.round: scored})
        case "alone":
            return replace(state, alone={**state.alone, key.node: answer})
        case "compare":
            return replace(state, compared={**state.compared, key.node: answer})
        case "initialize":
            return replace(state, initialization=answer if isinstance(answer, Failed) else None)
        case _:
            assert_never(key.kind)


def _worked(state: RunState, key: TaskKey, traffic: Traffic) -> RunState:
    """Book a task's bytes on its node and on the open round, and free the node."""
    node = state.nodes[key.node]
    state = _with_node(
        state, key.node, task=None if node.task == key else node.task, bytes=node.bytes + traffic, attempt=key.attempt
    )
    opened = state.open and replace(state.open, bytes=state.open.bytes + traffic)
    return replace(state, open=opened)


def _is_past(state: RunState, key: TaskKey) -> bool:
    """True when a task's start or failure is no news: it was answered, tried again, or its round is closed."""
    match key.kind, state.answers(key.kind, key.round).get(key.node):
        case "train", _ if not _is_open(state, key.round):
            return True
        case "initialize", _ if state.model is not None:
            return True
        case _, Failed(attempt=attempt):
            return attempt >= key.attempt
        case _, answer:
            return answer is not None


def _is_open(state: RunState, number: int) -> bool:
    return state.open is not None and state.open.number == number


def _with_node(state: RunState, name: str, **changes: object) -> RunState:
    if name not in state.nodes:
        return state
    return replace(state, nodes={**state.nodes, name: replace(state.nodes[name], **changes)})  # type: ignore[arg-type]
