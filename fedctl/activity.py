"""What each node of a run is about, in one word and the figures beside it.

Pure and standard library only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from fedctl import fleet
from fedctl.records import Kind, TaskKey
from fedctl.state import Answer, Failed, NodeState, Received, RunState, Said, Scored
from fedctl.traffic import Traffic

Activity = Literal[
    "preparing",
    "waiting",
    "training",
    "evaluating",
    "alone",
    "comparing",
    "fine-tuning",
    "masking",
    "unmasking",
    "unreachable",
    "unknown",
    "done",
    "failed",
    "lost",
    "away",
]
"""What a node is about; `unknown` is said of one that was at work when the coordinator left, and may be still."""

_AT_WORK: Mapping[Kind, Activity] = {
    "train": "training",
    "evaluate": "evaluating",
    "alone": "alone",
    "compare": "comparing",
    "finetune": "fine-tuning",
    "initialize": "preparing",
    "keys": "masking",
    "shares": "masking",
    "agree": "unmasking",
    "unmask": "unmasking",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStanding:
    """One node; its metrics are those of its training, and over them its newest scoring of the global model.

    `personal` are those of its personal model, empty where none has been scored. `has_log` says whether its own log
    tells why it failed. `partial_steps` are those of its update of the open round, where that holds what was done when
    time was over, and `pending` is the round whose training it goes on with though that is closed. A node that is lost
    or away is looked for again in `again_s` seconds; if `awaited`, the run waits for it, for `patience_s` seconds more
    (None: for ever).
    """

    name: str
    state: Activity
    round: int
    attempt: int
    metrics: Mapping[str, float]
    personal: Mapping[str, float]
    bytes: Traffic
    error: str | None
    examples: int
    seconds: float
    accelerator: str
    has_log: bool = False
    partial_steps: int | None = None
    pending: int | None = None
    again_s: float | None = None
    awaited: bool = False
    patience_s: float | None = None


def node_standing(
    state: RunState, node: NodeState, moment: datetime | None, personal: Mapping[str, float]
) -> NodeStanding:
    """A node at a moment of a run that is running, or, without a moment, of one that stands still."""
    answer = state.open.answers.get(node.name) if state.open else None
    standing = NodeStanding(
        name=node.name,
        state=activity(state, node, at_work(state, node), running=moment is not None),
        round=node.round,
        attempt=node.attempt,
        personal=personal,
        metrics={**node.metrics, **(node.score.metrics if node.score else {})},
        bytes=node.bytes,
        has_log=bool(node.detail),
        error=node.barred or node.error,
        examples=node.examples,
        seconds=node.seconds,
        accelerator=node.accelerator,
        pending=state.pending[node.name].key.round if node.name in state.pending else None,
        partial_steps=answer.steps if isinstance(answer, Received) and answer.partial else None,
    )
    if moment is None or node.status not in ("lost", "away"):
        return standing
    end = fleet.given_up_at(node, state.patience_s)
    awaited = fleet.may_return(node, state.patience_s, moment)
    return replace(
        standing,
        again_s=max(0.0, (fleet.looked_for_at(node, state.seed) - moment).total_seconds()),
        awaited=awaited,
        patience_s=(end - moment).total_seconds() if end and awaited else None,
    )


def at_work(state: RunState, node: NodeState) -> TaskKey | None:
    """What a node works on, by the journal: what it was last seen to begin, or else a training that still counts."""
    if node.task is not None or node.status != "ready":
        return node.task
    begun = state.begun(node.name)
    return begun and begun[0]


def activity(state: RunState, node: NodeState, task: TaskKey | None, *, running: bool) -> Activity:
    """What a node is about, `task` being what it works on, if anything; `running` is the run, with its coordinator."""
    if node.status in ("lost", "away"):
        return "lost" if node.status == "lost" else "away"
    if task is not None and state.status not in ("finished", "failed"):
        return _AT_WORK[task.kind] if running else "unknown"
    if node.status == "new":
        return "preparing" if running else "waiting"
    return _answered(state, node.name)


def _answered(state: RunState, name: str) -> Activity:
    """Where a ready node without a task stands, by its last answer that still counts."""
    if state.nodes[name].barred:
        return "failed"
    if state.open is not None:
        return _outcome(state.open.answers.get(name))
    if name in state.compared:
        return _outcome(state.compared[name])
    last = state.alone.get(name, state.finetuned.get(name))
    if isinstance(last, Failed):
        return "failed"
    if isinstance(last, Scored) and not state.compare:
        return "done"
    if state.status in ("finished", "failed") and state.history:
        return "failed" if name in state.history[-1].failed else "done"
    return "waiting"


def _outcome(answer: Answer | None) -> Activity:
    match answer:
        case None:
            return "waiting"
        case Failed():
            return "failed"
        case Received() | Scored() | Said():
            return "done"
