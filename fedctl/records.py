"""What crosses the wire between coordinator and node, as frozen records with strict JSON forms.

Owns `TaskKey`, `Blob`, `Task`, `Score`, `Result` and `Progress`. Standard library only: the node imports this
module too, and nothing here may know of paths, transports or torch. Whatever a node sends is read with `from_json`,
which refuses every field that is missing, unknown, of another type or out of bounds with a `ValueError`.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from fedctl.names import COORDINATOR, NODE_NAME, Blob, Kind, TaskKey
from fedctl.strictjson import a_count, a_flag, a_list, a_mapping, a_number, a_text, fields_of

__all__ = [
    "COORDINATOR",
    "DIFFERENCE",
    "MEMORY",
    "METERED",
    "NEWEST",
    "NODE_NAME",
    "REST",
    "Blob",
    "Kind",
    "Phase",
    "Progress",
    "Result",
    "Score",
    "Task",
    "TaskKey",
]


REST, MEMORY, DIFFERENCE = "rest", "memory", "difference"
"""Labels of what comes with a model.

They are its tensors that no node shares, as they were at first; what its strategy sends; and its difference to the
model before it. A node that can make the rest, or the model itself, of what it has is not sent it.
"""
LONGEST_MESSAGE = 1_000_000
METERED = ("noise", "rate", "steps", "epsilon", "delta")
"""What a training with noise tells of it."""
_WITHIN = dict(zip(METERED, ((1e-9, 1e9), (1e-9, 1.0), (0.0, 1e9), (0.0, math.inf), (1e-100, 1.0)), strict=True))
"""Whatever lies within, an accountant has a finite answer to in seconds."""
NEWEST = ("base", "global")
"""Labels of a run's newest model: the one to train, or to score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What validating one model on one node's data gave: metrics averaged over `examples` examples."""

    examples: int
    metrics: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return _to_json(self)

    @classmethod
    def from_json(cls, value: Any) -> "Score":
        fields = fields_of(value, cls)
        return cls(examples=a_count(fields["examples"], "examples"), metrics=_metrics(fields["metrics"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one node is asked: which code, on which models, with which seed.

    `models` are labelled: a training task has the label "base", an evaluation a label a model that is scored; beside
    them may come `REST` and `MEMORY`. Of a model only what `share` says is in them (`Share.to_json`; empty: all). The
    node takes up what it kept of its training `kept` (None: of none), and builds the rest with `first_seed`.
    `trainer` holds arguments of Lightning's Trainer; `threads` bounds torch's own threads (0 leaves torch's choice).
    A training hands in what it has done after so many `seconds` (None: it comes to its end). `when` says when the node
    may be used, as the agent's `may` takes it (empty: always); a `partial` training hands in what it has done when it
    may be used no more, others come to nothing then. `callbacks` are the user's, each a `class` (`file.py:Class`) and
    its `args`; `local` is the name and the options of a local rule (empty: none). Unless `reset_optimizer`, optimizers
    go on as they ended in `kept`. `codec` has the codecs of updates (`up`) and of models (`down`), each with its name
    and options; `previous` is the model that a `DIFFERENCE` in `models` leads on from. `finetune` has arguments of the
    model that go before `model_args` in a fine-tuning. `privacy` is what the federation promises (`Privacy.to_json`;
    empty: nothing), and `message` what secure aggregation has to say to the node in this step.
    """

    key: TaskKey
    seed: int
    model: str
    model_args: Mapping[str, Any]
    data: str
    data_args: Mapping[str, Any]
    trainer: Mapping[str, Any]
    models: Mapping[str, Blob] = field(default_factory=dict)
    codec: Mapping[str, Any] = field(default_factory=dict)
    previous: Blob | None = None
    threads: int = 0
    seconds: float | None = None
    partial: bool = False
    when: Mapping[str, Any] = field(default_factory=dict)
    callbacks: tuple[Mapping[str, Any], ...] = ()
    local: Mapping[str, Any] = field(default_factory=dict)
    share: Mapping[str, Any] = field(default_factory=dict)
    reset_optimizer: bool = True
    first_seed: int = 0
    finetune: Mapping[str, Any] = field(default_factory=dict)
    kept: TaskKey | None = None
    privacy: Mapping[str, Any] = field(default_factory=dict)
    message: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return _to_json(self)

    @classmethod
    def from_json(cls, value: Any) -> "Task":
        fields = fields_of(value, cls)
        models = {label: Blob.from_json(blob) for label, blob in a_mapping(fields["models"], "models").items()}
        return cls(
            key=TaskKey.parse(fields["key"]),
            seed=a_count(fields["seed"], "seed"),
            model=a_text(fields["model"], 1_000),
            model_args=a_mapping(fields["model_args"], "model_args"),
            data=a_text(fields["data"], 1_000),
            data_args=a_mapping(fields["data_args"], "data_args"),
            trainer=a_mapping(fields["trainer"], "trainer"),
            models=models,
            codec=a_mapping(fields["codec"], "codec"),
            previous=None if fields["previous"] is None else Blob.from_json(fields["previous"]),
            threads=a_count(fields["threads"], "threads"),
            seconds=None if fields["seconds"] is None else a_number(fields["seconds"], "seconds"),
            partial=a_flag(fields["partial"], "partial"),
            when=a_mapping(fields["when"], "when"),
            callbacks=tuple(_callback(each) for each in a_list(fields["callbacks"], "callbacks")),
            local=a_mapping(fields["local"], "local"),
            share=a_mapping(fields["share"], "share"),
            reset_optimizer=a_flag(fields["reset_optimizer"], "reset_optimizer"),
            first_seed=a_count(fields["first_seed"], "first_seed"),
            finetune=a_mapping(fields["finetune"], "finetune"),
            kept=None if fields["kept"] is None else TaskKey.parse(fields["kept"]),
            privacy=a_mapping(fields["privacy"], "privacy"),
            message=a_mapping(fields["message"], "message"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a finished task left behind: `result.json`, written last.

    `seconds` is the time in Lightning's fit or validate alone. `update` is the file of weights that was made, if any,
    after `steps` of the optimizer; it is `partial` where the training was ended early, and `fresh` where what the node
    had kept was gone. A failed task has an `error`
    (one line), the `detail` (end of the traceback) and whether a retry could help. One that the node's owner stopped
    has their reason as its `error`, and may be asked for again after `ask_again_s` (None for all others).
    `message` is what the node has to say in a step of secure aggregation. `privacy` meters a training with noise:
    `noise`, `rate` and `steps` of its mechanism, and what its node has spent by it in all, `epsilon` at `delta`.
    `tensors` are the names of those that the update brings, also where its file does not show them.
    """

    key: TaskKey
    examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)
    update: Blob | None = None
    steps: int = 0
    partial: bool = False
    fresh: bool = False
    seconds: float = 0.0
    accelerator: str = ""
    error: str | None = None
    detail: str = ""
    retryable: bool = False
    ask_again_s: float | None = None
    message: Mapping[str, Any] = field(default_factory=dict)
    privacy: Mapping[str, Any] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return _to_json(self)

    @classmethod
    def from_json(cls, value: Any) -> "Result":
        fields = fields_of(value, cls)
        scores = a_mapping(fields["scores"], "scores")
        if len(scores) > 100_000:
            raise ValueError("scores must be an object of at most 100000 entries")
        return cls(
            key=TaskKey.parse(a_text(fields["key"], 200)),
            examples=a_count(fields["examples"], "examples"),
            metrics=_metrics(fields["metrics"]),
            scores={a_text(label, 100): Score.from_json(score) for label, score in scores.items()},
            update=None if fields["update"] is None else Blob.from_json(fields["update"]),
            steps=a_count(fields["steps"], "steps"),
            partial=a_flag(fields["partial"], "partial"),
            fresh=a_flag(fields["fresh"], "fresh"),
            seconds=a_number(fields["seconds"], "seconds"),
            accelerator=a_text(fields["accelerator"], 200),
            error=None if fields["error"] is None else a_text(fields["error"], 2_000),
            detail=a_text(fields["detail"], 20_000),
            retryable=a_flag(fields["retryable"], "retryable"),
            ask_again_s=None if fields["ask_again_s"] is None else a_number(fields["ask_again_s"], "ask_again_s"),
            message=_message(fields["message"]),
            privacy=_metered(fields["privacy"]),
            tensors=_names(fields["tensors"]),
        )


Phase = Literal["waiting", "loading", "training", "evaluating", "saving", "unreachable"]
"""What a task is about; `unreachable` is the coordinator's own word, for as long as it has no line to the node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Telemetry of a running task, from Lightning's own progress; never journalled.

    `step` of `steps` counts batches within epoch `epoch` of `epochs` (from 1); `steps` is 0 where it is not known.
    """

    key: TaskKey
    phase: Phase
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return _to_json(self)

    @classmethod
    def from_json(cls, value: Any) -> "Progress":
        fields = fields_of(value, cls)
        if fields["phase"] not in get_args(Phase):
            raise ValueError(f"unknown phase: {fields['phase']!r}")
        counts = {name: a_count(fields[name], name) for name in ("epoch", "epochs", "step", "steps")}
        key = TaskKey.parse(a_text(fields["key"], 200))
        return cls(key=key, phase=fields["phase"], metrics=_metrics(fields["metrics"]), **counts)


def _to_json(record: Any) -> dict[str, Any]:
    """A record's fields; a metric that is not finite is null."""
    fields = {each.name: _plain(getattr(record, each.name)) for each in dataclasses.fields(record)}
    if "metrics" in fields:
        fields["metrics"] = {name: value if math.isfinite(value) else None for name, value in record.metrics.items()}
    return fields


def _plain(value: Any) -> Any:
    match value:
        case TaskKey():
            return str(value)
        case Blob() | Score():
            return value.to_json()
        case Mapping():
            return {name: _plain(item) for name, item in value.items()}
        case tuple():
            return [_plain(item) for item in value]
        case _:
            return value


def _message(value: Any) -> dict[str, Any]:
    """What a node says to others; who reads it checks what is in it."""
    message = a_mapping(value, "message")
    if len(json.dumps(message)) > LONGEST_MESSAGE:
        raise ValueError(f"message must be at most {LONGEST_MESSAGE} characters")
    return message


def _metered(value: Any) -> dict[str, float]:
    metered = {name: a_number(number, name) for name, number in a_mapping(value, "privacy").items()}
    if metered and set(metered) != set(METERED):
        raise ValueError(f"privacy must have exactly {', '.join(METERED)}")
    for name, number in metered.items():
        least, most = _WITHIN[name]
        if not least <= number <= most or (name == "steps" and not number.is_integer()):
            raise ValueError(f"privacy: no training has {name} {number:g}")
    return metered


def _names(value: Any) -> tuple[str, ...]:
    names = a_list(value, "tensors")
    if len(names) > 1_000_000:
        raise ValueError("tensors must be a list of at most 1000000 names")
    return tuple(a_text(name, 1_000) for name in names)


def _callback(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != {"class", "args"}:
        raise ValueError("a callback must be an object with exactly class, args")
    return {"class": a_text(value["class"], 1_000), "args": a_mapping(value["args"], "args")}


def _metrics(value: Any) -> dict[str, float]:
    """Metrics may be NaN (a diverged loss is a fact worth showing), so they are finite or null on the wire."""
    if not isinstance(value, dict) or len(value) > 1_000:
        raise ValueError("metrics must be an object of at most 1000 numbers")
    return {a_text(name, 200): math.nan if number is None else a_number(number, name) for name, number in value.items()}
