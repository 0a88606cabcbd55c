"""One plain sentence for each event, for pipes, logs and the dashboard's last lines. Loads nothing of rich."""

from collections.abc import Mapping
from typing import assert_never

from fedctl.events import (
    UNNEEDED,
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
from fedctl.measures import newest_metrics, personalization
from fedctl.records import Kind, TaskKey
from fedctl.report import elapsed
from fedctl.state import RunState
from fedctl.views.text import clock, counted, duration, figure, on_some, plain, size

_STEPS: Mapping[Kind, str] = {
    "keys": "{} told their keys",
    "shares": "{} shared their secrets, and train",
    "train": "{} sent masked updates",
    "agree": "{} signed whose updates the sum is of",
}
_SAID: Mapping[Kind, str] = {
    "keys": "told its keys",
    "shares": "shared its secrets",
    "agree": "signed whose updates the sum is of",
    "unmask": "gave its shares of the masks",
}


def stamp(event: Event) -> str:
    """The local time of an event."""
    return event.at.astimezone().strftime("%H:%M:%S")


def is_routine(event: Event) -> bool:
    """True of what a table of nodes shows anyway, a node at a time."""
    return isinstance(event, TaskStarted | MessageReceived) or (
        isinstance(event, ModelEvaluated) and event.task.kind == "evaluate"
    )


def is_small(event: Event) -> bool:
    """True of what one node does in one step of secure aggregation: a line tells when the step is done."""
    return isinstance(event, TaskStarted | MessageReceived) and event.task.kind in _SAID


def sentence(event: Event, state: RunState) -> str:
    """What has happened, in one line without its time; `state` is the run's after the event, or any later one."""
    return plain(_sentence(event, state))


def _sentence(event: Event, state: RunState) -> str:
    match event:
        case RunStarted():
            return _run_started(event, state)
        case NodeReady():
            return f"{event.node} is ready"
        case NodeLost():
            return f"{event.node} is lost: {event.reason}" + ("; it is looked for again" if event.passing else "")
        case NodeDeclined():
            return f"{event.node} is not to be used now: {event.reason}"
        case ModelInitialized():
            return f"the first model is built ({size(event.model.size)})"
        case RoundOpened():
            others = f", and {counted(len(state.pending), 'node')} at work" if event.max_staleness else ""
            return f"round {event.round} opened with {counted(len(event.nodes), 'node')}{others}"
        case RoundWidened():
            return f"round {event.round} asks more nodes: {', '.join(event.nodes)}"
        case TaskStarted():
            return f"{_subject(event.task)} started {_doing(event.task)}{_again(event.task)}"
        case TaskFailed(reason=reason) if reason == UNNEEDED:
            return f"{_subject(event.task)} was not needed any more"
        case TaskFailed():
            what = "" if event.task.kind == "train" else f" {_doing(event.task)}"
            return f"{_subject(event.task)} failed{what} (attempt {event.task.attempt}): {event.reason}"
        case UpdateReceived():
            return f"{_subject(event.task)} {_update(event, state)}"
        case UpdateLost():
            return f"{_subject(event.task)} is asked for its update again: {event.reason}"
        case ModelEvaluated():
            return f"{_subject(event.task)} {_scores(event, state)}"
        case StepClosed():
            return f"round {event.round}: {_STEPS[event.step].format(counted(len(event.nodes), 'node'))}"
        case MessageReceived():
            return f"{_subject(event.task)} {_SAID[event.task.kind]}"
        case RoundHeld():
            updates = counted(len(state.open.updates), "update") if state.open else "its updates"
            return f"round {event.round} is held with {updates}, for `fedctl aggregate {state.run} --commit`"
        case RoundAggregated():
            took = next((f" in {duration(r.seconds)}" for r in state.history if r.number == event.round), "")
            what = f"aggregated from {counted(len(event.contributors), 'node')}"
            return f"round {event.round} {what}{took}{_late(event, state)}"
        case RoundAbandoned():
            without = f"; later rounds go without {', '.join(event.nodes)}" if event.nodes else ""
            return f"round {event.round} is abandoned: {event.reason}{without}"
        case RunFinished():
            early = f"; {event.reason}" if event.reason else ""
            return f"run finished in {clock(elapsed(state))}{_final(state)}{early}"
        case RunFailed():
            return f"run failed: {event.reason}"
        case _:
            assert_never(event)


def _run_started(event: RunStarted, state: RunState) -> str:
    if state.started_at is not None and state.started_at < event.at:
        return f"run {event.run} resumed"
    return f"run {event.run} started: {counted(len(event.nodes), 'node')}, {counted(event.rounds, 'round')}"


def _subject(task: TaskKey) -> str:
    match task.kind:
        case "train" | "evaluate" | "keys" | "shares" | "agree" | "unmask":
            return f"round {task.round}: {task.node}"
        case "alone" | "compare" | "finetune" | "initialize":
            return task.node


def _doing(task: TaskKey) -> str:
    match task.kind:
        case "train":
            return "training"
        case "evaluate":
            return "evaluating the model"
        case "alone":
            return "training alone"
        case "compare":
            return "comparing the models"
        case "finetune":
            return "fine-tuning its own model"
        case "initialize":
            return "building the first model"
        case "keys":
            return "making its keys"
        case "shares":
            return "sharing its secrets"
        case "agree":
            return "signing the sum"
        case "unmask":
            return "taking masks off"


def _again(task: TaskKey) -> str:
    return f" (attempt {task.attempt})" if task.attempt > 1 else ""


def _update(event: UpdateReceived, state: RunState) -> str:
    is_masked = state.open is not None and state.open.secure and event.task.kind == "train"
    came = size(event.bytes.received or event.update.size)
    what = "has trained alone" if event.task.kind == "alone" else f"sent its update of {came}"
    if is_masked:
        return f"sent its masked update of {came} ({duration(event.seconds)})"
    if event.partial:
        what = f"handed in {counted(event.steps, 'step')} of its training"
    facts = [counted(event.examples, "example"), duration(event.seconds)]
    if state.metric in event.metrics:
        facts.append(f"{state.metric} {figure(state.metric, event.metrics[state.metric])}")
    if event.task.kind == "train" and state.open and (late := state.open.number - event.task.round):
        facts.append(f"{counted(late, 'model')} late")
    began = "; it began anew: what it had kept was gone" if event.fresh else ""
    return f"{what} ({', '.join(facts)}){began}"


def _late(event: RoundAggregated, state: RunState) -> str:
    """How late the latest of a round's updates was, where any may be."""
    staleness = next((report.staleness for report in state.history if report.number == event.round), {})
    latest = max(staleness.values(), default=0)
    return f", the latest {counted(latest, 'model')} late" if latest else ""


def _scores(event: ModelEvaluated, state: RunState) -> str:
    if event.task.kind == "compare":
        return f"scored {counted(len(event.scores), 'model')}"
    everyones, own = _score(event, "global", state.metric), _score(event, "personal", state.metric)
    if event.task.kind == "finetune":
        beside = f" (global {everyones})" if own and everyones else ""
        return "fine-tuned its own model" + (f": {state.metric} {own}{beside}" if own else "")
    figures = [everyones, own and f"personal {own}"]
    said = ", ".join(one for one in figures if one)
    return "scored the model" + (f": {state.metric} {said}" if said else "")


def _score(event: ModelEvaluated, label: str, metric: str) -> str:
    return figure(metric, event.scores[label].metrics.get(metric)) if label in event.scores else ""


def _final(state: RunState) -> str:
    value = newest_metrics(state).get(state.metric)
    if value is None:
        return ""
    everyones = figure(state.metric, value)
    return f": {state.metric} {everyones}{_own(state, everyones)}"


def _own(state: RunState, everyones: str) -> str:
    """What personal models do, with the global one on their nodes where that is not what was said of `everyones`."""
    found, metric = personalization(state), state.metric
    if found is None or metric not in found.metrics["personal"]:
        return ""
    beside, own = (figure(metric, found.metrics[label].get(metric)) for label in ("global", "personal"))
    some = on_some(len(found.compared), len(state.nodes))
    return f", personal {own}" + (f" (global {beside})" if some or beside != everyones else "") + some
