"""What the events of tasks do to the state: one begins, fails, gives an update or a score, or its update is lost.

Pure, as `state.apply` is, whose half they are. What has been answered, or belongs to a closed round, is no news.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import TypeVar, assert_never

from fedctl.events import MessageReceived, ModelEvaluated, TaskFailed, TaskStarted, UpdateLost, UpdateReceived
from fedctl.records import Kind, TaskKey
from fedctl.runstate import Answer, Failed, Pending, Received, RunState, Said, Scored
from fedctl.traffic import Traffic

T = TypeVar("T")


def task_started(state: RunState, event: TaskStarted) -> RunState:
    key = event.task
    if _is_past(state, key):
        return state
    since = state.nodes[key.node].since if key.node in state.nodes and state.nodes[key.node].task == key else event.at
    state = state.with_node(key.node, task=key, attempt=key.attempt, round=key.round, since=since)
    if state.is_pending(key):
        asked = state.pending[key.node]
        begun = replace(asked, begun_at=asked.begun_at or event.at)
        return replace(state, pending={**state.pending, key.node: begun})
    if key.kind != "train" or state.open is None:
        return state
    known, _ = state.open.begun.get(key.node, (None, None))
    if known == key:
        return state
    return replace(state, open=replace(state.open, begun={**state.open.begun, key.node: (key, event.at)}))


def task_failed(state: RunState, event: TaskFailed) -> RunState:
    key = event.task
    if _is_past(state, key):
        node = state.nodes.get(key.node)
        return state.with_node(key.node, task=None) if node and node.task == key else state
    known = state.answers(key.kind, key.round).get(key.node)
    spent = known.spent + 1 if isinstance(known, Failed) else 1
    failed = Failed(attempt=key.attempt, spent=spent, reason=event.reason, retryable=event.retryable)
    state = state.with_node(key.node, task=None, error=event.reason, detail=event.detail, attempt=key.attempt)
    return _answered(state, key, failed, event.at)


def update_received(state: RunState, event: UpdateReceived) -> RunState:
    key = event.task
    before = state.answers(key.kind, key.round).get(key.node)
    if key.node not in state.nodes or (isinstance(before, Received) and before.key == key):
        return state
    if metered := event.privacy:  # it has left the node, whether it counts or not
        step = (metered["noise"], metered["rate"], int(metered["steps"]))
        state = state.with_node(key.node, spent=(*state.nodes[key.node].spent, step))
        if state.noise == "local":  # what rounds spend is told with their models
            state = replace(state, epsilon=max(state.epsilon or 0.0, metered["epsilon"]))
    if isinstance(before, Received):
        return state
    if key.kind == "train" and (not state.counts(key) or _is_settled(state, key, None)):
        return state.with_node(key.node, task=None) if state.nodes[key.node].task == key else state
    received = Received(
        key=key,
        update=event.update,
        examples=event.examples,
        metrics=event.metrics,
        seconds=event.seconds,
        line_s=event.line_s,
        steps=event.steps,
        partial=event.partial,
    )
    state = _answered(_worked(state, key, event.bytes), key, received, event.at)
    state = state.with_node(key.node, error=None, detail="", accelerator=event.accelerator)
    if key.kind != "train":
        return state
    contributions = state.nodes[key.node].contributions + 1
    return state.with_node(
        key.node,
        metrics=event.metrics,
        seconds=event.seconds,
        examples=event.examples,
        contributions=contributions,
    )


def update_lost(state: RunState, event: UpdateLost) -> RunState:
    """The node is asked for it again, under the same key; what it did counts once."""
    key = event.task
    opened = state.open
    known = {**state.carried, **(opened.answers if opened else {})} if key.kind == "train" else state.alone
    answer = known.get(key.node)
    if not isinstance(answer, Received) or answer.key != key:
        return state
    before = Failed(attempt=key.attempt - 1, spent=0, reason=event.reason, retryable=True)
    if key.kind == "alone":
        return replace(state, alone={**state.alone, key.node: before})
    state = state.with_node(key.node, contributions=state.nodes[key.node].contributions - 1)
    if opened and opened.number == key.round:
        return replace(state, open=replace(opened, answers={**opened.answers, key.node: before}))
    return replace(
        state,
        open=opened and replace(opened, answers=_without(opened.answers, key.node)),
        carried=_without(state.carried, key.node),
        pending={**state.pending, key.node: Pending(key=key, asked_at=event.at)},
    )


def message_received(state: RunState, event: MessageReceived) -> RunState:
    key = event.task
    is_known = isinstance(state.answers(key.kind, key.round).get(key.node), Said)
    if key.node not in state.nodes or is_known or not state.is_open(key.round) or _has_closed(state, key.kind):
        return state
    state = state.with_node(key.node, error=None, detail="")
    return _answered(_worked(state, key, event.bytes), key, Said(key=key, message=event.message), event.at)


def model_evaluated(state: RunState, event: ModelEvaluated) -> RunState:
    key = event.task
    if key.node not in state.nodes or isinstance(state.answers(key.kind, key.round).get(key.node), Scored):
        return state
    scored = Scored(scores=event.scores, seconds=event.seconds)
    state = _answered(_worked(state, key, event.bytes), key, scored, event.at)
    if key.kind == "evaluate" and "global" in event.scores:
        state = state.with_node(key.node, score=event.scores["global"])
    return state


def _answered(state: RunState, key: TaskKey, answer: Answer, at: datetime) -> RunState:
    if key.node in state.nodes and state.nodes[key.node].status == "ready":
        state = state.with_node(key.node, trouble_at=None)
    match key.kind:
        case "train":
            opened = state.open
            state = replace(state, pending=_without(state.pending, key.node))
            if opened is None:
                carried = {key.node: answer} if isinstance(answer, Received) else {}
                return replace(state, carried={**state.carried, **carried})
            others = _without(opened.answers, key.node)
            came_s = (at - opened.opened_at).total_seconds() - opened.absent_s
            answered_s = {**opened.answered_s, key.node: came_s}
            return replace(state, open=replace(opened, answers={**others, key.node: answer}, answered_s=answered_s))
        case "evaluate":
            scored = {**state.evaluations.get(key.round, {}), key.node: answer}
            return replace(state, evaluations={**state.evaluations, key.round: scored})
        case "alone":
            return replace(state, alone={**state.alone, key.node: answer})
        case "finetune":
            return replace(state, finetuned={**state.finetuned, key.node: answer})
        case "compare":
            return replace(state, compared={**state.compared, key.node: answer})
        case "keys" | "shares" | "agree" | "unmask":
            if state.open is None:
                return state
            said = {**state.open.said.get(key.kind, {}), key.node: answer}
            return replace(state, open=replace(state.open, said={**state.open.said, key.kind: said}))
        case "initialize":
            return replace(state, initialization=answer if isinstance(answer, Failed) else None)
        case _:
            assert_never(key.kind)


def _worked(state: RunState, key: TaskKey, traffic: Traffic) -> RunState:
    """Book a task's bytes on its node and on the open round, and free the node."""
    node = state.nodes[key.node]
    state = state.with_node(
        key.node, task=None if node.task == key else node.task, bytes=node.bytes + traffic, attempt=key.attempt
    )
    opened = state.open and replace(state.open, bytes=state.open.bytes + traffic)
    return replace(state, open=opened)


def _without(many: Mapping[str, T], name: str) -> dict[str, T]:
    return {other: value for other, value in many.items() if other != name}


def _is_past(state: RunState, key: TaskKey) -> bool:
    """True when a task's start or failure is no news: it was answered, tried again, or its round is closed."""
    match key.kind, state.answers(key.kind, key.round).get(key.node):
        case "train", answer if not state.counts(key) or _is_settled(state, key, answer):
            return True
        case "keys" | "shares" | "agree" | "unmask", _ if not state.is_open(key.round) or _has_closed(state, key.kind):
            return True
        case "initialize", _ if state.model is not None:
            return True
        case _, Failed(attempt=attempt):
            return attempt >= key.attempt
        case _, answer:
            return answer is not None


def _has_closed(state: RunState, step: Kind) -> bool:
    """Whether the open round has gone past one of its steps."""
    return state.open is not None and step in state.open.steps


def _is_settled(state: RunState, key: TaskKey, answer: Answer | None) -> bool:
    """Whether a round has gone past its training without this node; one that is in its sum may send it again."""
    opened = state.open
    if opened is None or opened.number != key.round or "train" not in opened.steps:
        return False
    return key.node not in opened.steps["train"] or isinstance(answer, Received)
