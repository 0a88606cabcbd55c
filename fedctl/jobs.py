"""One task on one node: from the plan's words to the node's terms, and from the node's result to an event.

A failure of the node is an event here, never an exception; only what makes the whole run impossible is raised.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from fedctl import bundle
from fedctl.actions import Perform
from fedctl.arrival import Arrival
from fedctl.claims import check_examples, check_labels, check_noise, check_steps
from fedctl.clock import Clock
from fedctl.codecs.pipeline import PLAIN, Pipeline
from fedctl.durable import copy_atomically, is_there
from fedctl.errors import (
    ConfigError,
    ConnectionLost,
    Declined,
    HostKeyError,
    LoginError,
    ModelError,
    NodeError,
    ProtocolError,
)
from fedctl.events import (
    Event,
    MessageReceived,
    ModelEvaluated,
    ModelInitialized,
    NodeDeclined,
    NodeLost,
    TaskFailed,
    TaskStarted,
    UpdateReceived,
)
from fedctl.federation import Federation
from fedctl.forecast import forecast
from fedctl.host import Done, Host
from fedctl.records import COORDINATOR, DIFFERENCE, MEMORY, REST, Blob, Progress, Task, TaskKey
from fedctl.relay import agree_on_terms, layout_of, message, take
from fedctl.rundir import RunDir
from fedctl.share import EVERYTHING, Share
from fedctl.sizes import first_sizes
from fedctl.spending import affordable
from fedctl.traffic import Traffic

SAID = ("keys", "shares", "agree", "unmask")
"""The steps of secure aggregation that come to a message."""


def seed_of(seed: int, key: TaskKey) -> int:
    """The seed of a task, below 2**32: the same for every attempt, in every process, on every machine."""
    text = f"{seed}" if key.kind == "initialize" else f"{seed}/{key.round}/{key.node}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def task_of(federation: Federation, action: Perform) -> Task:
    """What the node is told."""
    spec, key, finetune = federation.task, action.task, federation.finetune
    codec = replace(federation.codec, up=()) if federation.privacy.is_secure else federation.codec  # rows are their own
    common: dict[str, Any] = {
        "key": key,
        "seed": seed_of(federation.seed, key),
        "model": spec.model,
        "model_args": spec.model_args,
        "finetune": finetune.model_args if finetune and key.kind in ("initialize", "finetune") else {},
        "data": spec.data,
        "models": action.models,
        "callbacks": tuple(each.to_json() for each in spec.callbacks),
        "codec": codec.to_json(),
        "previous": action.previous,
        "privacy": federation.privacy.to_json() | ({"history": action.spent} if action.spent else {}),
        "share": {} if federation.share == EVERYTHING else federation.share.to_json(),
        "first_seed": seed_of(federation.seed, TaskKey(round=0, node=COORDINATOR, kind="initialize")),
    }
    local = {"name": federation.local.name, **federation.local.options} if federation.local else {}
    if key.kind == "initialize":
        arguments = {node.name: {**spec.data_args, **node.data} for node in federation.nodes}
        return Task(**common, data_args=arguments, trainer=spec.trainer, threads=1, local=local)
    node = federation.node(key.node)
    trainer = {**spec.trainer, "accelerator": node.accelerator, "devices": node.devices}
    if phases := local.get("phases"):
        trainer = {**trainer, "max_epochs": sum(phase["epochs"] for phase in phases), "max_steps": -1}
    if finetune and key.kind == "finetune":
        trainer = {**trainer, "max_epochs": finetune.epochs, "max_steps": -1}
    for limit in ("max_epochs", "max_steps"):
        if isinstance(trainer.get(limit), int) and trainer[limit] > 0:
            trainer[limit] *= action.passes
    return Task(
        **common,
        data_args={**spec.data_args, **node.data},
        trainer=trainer,
        threads=node.threads,
        seconds=action.seconds,
        partial=federation.schedule.partial and key.kind in ("train", "alone"),
        when=node.when.to_json() if node.when else {},
        local=local if key.kind in ("train", "evaluate", "finetune") else {},
        reset_optimizer=spec.reset_optimizer or key.kind != "train",
        kept=action.kept,
    )


def perform(
    action: Perform,
    *,
    federation: Federation,
    needs_steps: bool = False,
    controls: bool = False,
    up: Pipeline = PLAIN,
    host: Host,
    run: RunDir,
    clock: Clock,
    tell: Callable[[Event], None],
    progressed: Callable[[Progress], None],
) -> Event:
    """Have the task done and return what became of it; `tell` hears that it was started.

    `needs_steps` says that an update is of no use without the number of optimizer steps behind it, `controls` that
    control variates may come beside the weights; by `up` its update travels.

    A node that is out of reach is lost, and its task goes on there: it is taken up under its key when the node is back.
    """
    key, secure = action.task, federation.privacy.secure_aggregation
    try:
        said = message(run, key, action.steps, federation) if secure and key.round else {}
        task = replace(task_of(federation, action), message=said)
        if key.kind == "initialize":
            host.prepare()
        if secure and key.kind == "train":
            agree_on_terms(run, task)
        done = host.perform(
            task,
            {label: model_path(run, label, key) for label in action.models},
            started=lambda: tell(TaskStarted(at=clock(), task=key)),
            progressed=progressed,
        )
        if done.result.error is not None:
            if key.kind == "initialize" and not done.result.retryable:
                raise ConfigError(done.result.error, hint=_hint(done.result.error, federation.folder))
            return TaskFailed(
                at=clock(),
                task=key,
                reason=done.result.error,
                retryable=done.result.retryable,
                detail=done.result.detail,
            )
        check_steps(done.result, task, is_needed=needs_steps and key.kind == "train")
        is_training = key.kind == "train"
        if is_training:
            check_noise(done.result, task)
        arrival = Arrival(
            model=model_path(run, "base", key),
            share=federation.share if is_training else Share(only=federation.share.only, kept=federation.share.kept),
            round=key.round,
            pipeline=up if is_training else PLAIN,
            seed=task.seed,
            controls=controls and is_training,
            farthest=federation.limits.norm,
            row=layout_of(run, key.round, action.steps, federation).row if secure and is_training else None,
        )
        if secure and key.kind in SAID:
            words = take(run, key, action.steps, federation, done.result.message)
            return MessageReceived(
                at=clock(),
                task=key,
                message=words,
                seconds=done.result.seconds,
                bytes=done.traffic,
                ledger=done.ledger,
            )
        event = _answer(action, done, federation, host, run, clock, arrival)
        return _foreseen(event, federation, run, controls=controls) if isinstance(event, ModelInitialized) else event
    except (ConnectionLost, Declined, HostKeyError, LoginError) as error:
        if key.kind == "initialize":
            return TaskFailed(at=clock(), task=key, reason=error.message, retryable=True)
        return lost(key.node, error, clock())
    except (NodeError, ModelError) as error:
        is_honest = isinstance(error, NodeError) and not isinstance(error, ProtocolError)
        return TaskFailed(at=clock(), task=key, reason=error.message, retryable=is_honest)


def lost(node: str, error: NodeError, at: datetime) -> Event:
    """What is journalled of a node that cannot be used; a line that cannot be had may come back by itself."""
    if isinstance(error, Declined):
        return NodeDeclined(at=at, node=node, reason=error.message, seconds=error.seconds)
    return NodeLost(at=at, node=node, reason=error.message, passing=isinstance(error, ConnectionLost))


def model_path(run: RunDir, label: str, key: TaskKey) -> Path:
    """Where the coordinator keeps the model that a task names."""
    if label.startswith("alone/"):
        return run.alone(label.removeprefix("alone/"))
    number = key.round - 1 if key.kind == "train" else key.round
    paths = {REST: run.rest, MEMORY: run.memory(number), DIFFERENCE: run.difference(number)}
    return paths.get(label, run.round_model(number))


def _answer(
    action: Perform, done: Done, federation: Federation, host: Host, run: RunDir, clock: Clock, arrival: Arrival
) -> Event:
    key, result = action.task, done.result
    check_examples(result, federation.limits.examples)
    if key.kind in ("evaluate", "compare", "finetune"):
        check_labels(result, action)
        return ModelEvaluated(
            at=clock(), task=key, scores=result.scores, seconds=result.seconds, bytes=done.traffic, ledger=done.ledger
        )
    if result.update is None:
        raise ProtocolError("the node returned no update")
    base = action.models.get("base")
    if base and result.update.size > arrival.most(base.size):
        raise ModelError(f"its update is {result.update.size:,} bytes, of a model of {base.size:,}")
    is_divided = key.kind == "initialize" and not federation.share.is_whole
    target = run.model if is_divided else run.answer(key)
    wire = run.wire(key) if arrival.is_coded else target
    began = time.monotonic()
    came = 0 if is_there(wire, result.update) else host.fetch_update(key, result.update, wire)
    line_s = done.line_s + time.monotonic() - began if key.kind == "train" else 0.0
    if key.kind == "initialize":
        return _initialized(run, federation, result.update, target, clock)
    update = arrival.decode(wire, target) if arrival.is_coded else result.update
    arrival.check(target)
    raw = max(update.size, base.size) if base and came and arrival.is_coded else came
    return UpdateReceived(
        at=clock(),
        task=key,
        update=update,
        examples=result.examples,
        metrics=result.metrics,
        seconds=result.seconds,
        bytes=done.traffic + Traffic(received=came, raw_received=raw),
        accelerator=result.accelerator,
        steps=result.steps,
        partial=result.partial,
        fresh=result.fresh,
        line_s=line_s,
        privacy=result.privacy,
        wire=result.update if arrival.is_coded else None,
        ledger=done.ledger,
    )


def _initialized(run: RunDir, federation: Federation, whole: Blob, target: Path, clock: Clock) -> ModelInitialized:
    """The first model is here: the federation's part of it becomes the run's model of round 0."""
    from fedctl.division import check_share, divide

    run.sync(target)
    check_share(target, federation.share)
    if federation.share.is_whole:
        copy_atomically(target, run.model)
        return ModelInitialized(at=clock(), model=whole)
    run.round(0).mkdir(parents=True, exist_ok=True)
    model, rest = divide(target, federation.share, run.round_model(0), run.rest)
    run.sync(run.rest)
    return ModelInitialized(at=clock(), model=model, rest=rest)


def _foreseen(event: ModelInitialized, federation: Federation, run: RunDir, *, controls: bool) -> ModelInitialized:
    """The event with what the run will carry, now that the size of its model is known."""
    sizes = first_sizes(run, federation, event.model, controls=controls)
    within = replace(federation, rounds=affordable(federation))
    return replace(event, forecast=forecast(within, sizes).run)


def _hint(error: str, folder: Path) -> str:
    """The next thing to do about code that cannot be used."""
    if stays := bundle.explain_missing(folder, error):
        return stays
    hints: Mapping[str, str] = {
        "ModuleNotFoundError": "install it in the environment that fedctl runs in, or name it in requirements.txt",
        "task.model_args": "`task: {model_args: {...}}` in fed.yaml are the arguments of the model's __init__",
        "task.data_args": "`task: {data_args: {...}}` and each node's `data:` are the arguments of the data module",
        "no train_dataloader": "a LightningDataModule needs train_dataloader(), and val_dataloader() to be scored",
        "task.trainer": "`task: {trainer: {...}}` in fed.yaml are arguments of Lightning's Trainer",
        "task.callbacks": "`args` beside the `class` of a callback are the arguments of its __init__",
        "local/": "`local` in fed.yaml names parts of the model as its named_parameters() and named_modules() do",
        "is no Lightning": "`task.model` names a LightningModule and `task.data` a LightningDataModule",
    }
    return next(
        (hint for part, hint in hints.items() if part in error), "mend it in your code; `fedctl check` tries it again"
    )
