"""Trains the user's LightningModule with the Lightning that it subclasses: `lightning.pytorch` or `pytorch_lightning`.

Each kind of task, from its models to its result. What a local rule is, and what Lightning is given, are others' part.
"""

import importlib
import inspect
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fedctl.errors import ConfigError, Declined, closest
from fedctl.node import keep, rules
from fedctl.node.keep import Kept
from fedctl.node.rules import Local
from fedctl.node.trainers.code import bind, flavour_of, load, place, seed_everything
from fedctl.node.trainers.fitting import Report, Setup, accelerator, callback_classes, model_args, numbers, set_up
from fedctl.node.trainers.handing import handed_in
from fedctl.node.trainers.parts import check_parts, initial, trained_here, whole
from fedctl.node.trainers.session import Session
from fedctl.node.window import Window
from fedctl.privacy import Privacy
from fedctl.records import DIFFERENCE, MEMORY, REST, Progress, Result, Score, Task
from fedctl.weights import save, save_checkpoint

PERSONAL = "personal"
"""The folder in that of the run where each node's own model is, as Lightning loads it: `alice.ckpt`."""


def perform(task: Task, models: Mapping[str, Path], folder: Path, report: Report, threads: int) -> Result:
    """Do one task of any kind; raises whatever the user's code raises, and Declined where the owner stops it."""
    torch.set_num_threads(threads)
    window = Window(task)
    if no := window.closed():
        raise no
    report(Progress(key=task.key, phase="loading"))
    match task.key.kind:
        case "initialize":
            return _initialize(task, folder)
        case "train" | "alone":
            return _train(task, models, folder, report, window)
        case "evaluate" | "compare":
            return _evaluate(task, models, folder, report, window)
        case "finetune":
            return _finetune(task, models, folder, report, window)
        case "keys" | "shares" | "agree" | "unmask":
            from fedctl.node.trainers import masking  # its library is on nodes that mask, and on no other

            return masking.step(task, folder)


def _initialize(task: Task, folder: Path) -> Result:
    """Build the first model from the user's code and the seed, and check that the data module can be built."""
    model_class = load(task.model)
    flavour = flavour_of(model_class, "LightningModule", task.model)
    data_class = load(task.data)
    flavour_of(data_class, "LightningDataModule", task.data, flavour)
    if data_class.train_dataloader is importlib.import_module(flavour).LightningDataModule.train_dataloader:
        raise ConfigError(f"{place(data_class, task.data)} has no train_dataloader()")
    bind(model_class, task.model, task.model_args, "model_args")
    bind(model_class, task.model, {**task.model_args, **task.finetune}, "model_args, with those of finetune,")
    known = inspect.signature(importlib.import_module(flavour).Trainer.__init__).parameters
    for name in task.trainer:
        if name not in known:
            near = closest(name, known)
            meant = f", did you mean {near!r}?" if near else ""
            raise ConfigError(f"task.trainer: Lightning's Trainer has no argument {name!r}{meant}")
    for node, arguments in task.data_args.items():
        bind(data_class, task.data, arguments, f"data_args, or the data of node {node},")
    for kind, each in callback_classes(task, flavour):
        bind(kind, each["class"], each["args"], "callbacks")
    model = initial(task)
    check_parts(model, task)
    if task.local:
        rules.check(rules.build(task.local), model)
    if Privacy.from_json(task.privacy).mode == "local":
        from fedctl.node.trainers import demands  # its library is for those alone who add noise to gradients

        demands.check_rule(task.local.get("name"))
        demands.check_module(model)
    return Result(key=task.key, update=save(folder / "update.safetensors", model.state_dict()))


def _train(task: Task, models: Mapping[str, Path], folder: Path, report: Report, window: Window) -> Result:
    """Hand in an update, and leave here what the node's next training goes on with."""
    kept = keep.load(folder.parent, task)
    is_masked = task.key.kind == "train" and Privacy.from_json(task.privacy).is_secure
    if is_masked:
        from fedctl.node.trainers import masking

        if before := masking.earlier(task, folder):
            return before
        masking.prepare(task, folder)
    if task.key.kind == "train":
        keep.sweep(folder.parent, task)
    local, session = _trained(task, models, "base", folder, report, window, kept)
    report(Progress(key=task.key, phase="saving"))
    state = local.module.state_dict()
    handing = handed_in(task, models, state, local.controls, kept)
    if task.key.kind == "train" and keep.is_asked(task):
        left = Kept(
            private=trained_here(state, models),
            waiting=handing.waiting,
            rule=local.kept,
            residual=handing.residual,
            optimizers=session.optimizers,
        )
        keep.save(folder, left)
    if is_masked and session.counted.telemetry.was_cut:
        raise ConfigError(
            "secure aggregation: a training that was cut short is not masked, for others may have been too"
        )
    spent = session.private.result if session.private else {}
    if is_masked:  # how many examples and steps, and what the loss was, would tell of the node alone
        update, metered = masking.masked(task, handing, folder, session.counted.telemetry.examples, spent)
        return Result(
            key=task.key,
            update=update,
            tensors=tuple(sorted(name for name, spec in handing.expected.items() if spec.is_floating)),
            fresh=keep.is_asked(task) and keep.is_missed(task, kept),
            privacy=metered,
            seconds=session.seconds,
            accelerator=accelerator(session.counted.trainer),
        )
    return Result(
        key=task.key,
        metrics=numbers(session.counted.trainer.callback_metrics),
        update=handing.save(folder / "update.safetensors"),
        examples=session.counted.telemetry.examples,
        steps=session.counted.trainer.global_step,
        partial=session.counted.telemetry.was_cut,
        fresh=keep.is_asked(task) and keep.is_missed(task, kept),
        privacy=spent,
        seconds=session.seconds,
        accelerator=accelerator(session.counted.trainer),
    )


def _trained(
    task: Task,
    models: Mapping[str, Path],
    label: str,
    folder: Path,
    report: Report,
    window: Window,
    kept: Kept | None,
) -> tuple[Local, Session]:
    """Train without Lightning's own validation, and with it where a scheduler or a callback waits for its metric."""
    rule = rules.build(task.local) if task.local and task.key.kind == "train" else None

    def attempt(*, validates: bool) -> tuple[Local, Session]:
        session = Session(task, models, label, folder, report, window, kept, validates=validates)
        return (rule.train(session) if rule else Local(module=session.fit())), session

    try:
        return attempt(validates=False)
    except Declined:
        raise
    except Exception as error:
        if "not available" not in str(error):
            raise
    return attempt(validates=True)


def _evaluate(task: Task, models: Mapping[str, Path], folder: Path, report: Report, window: Window) -> Result:
    """Validate each of the models on this node's own validation data, and the node's own model where it has one."""
    scored: dict[str, Mapping[str, Tensor]] = {
        label: whole(task, models, label) for label in models if label not in (REST, MEMORY, DIFFERENCE)
    }
    if own := _personal(task, models, keep.load(folder.parent, task)):
        scored["personal"] = own
        _leave(task, own, folder)
    return _scored(task, scored, folder, report, window)


def _personal(task: Task, models: Mapping[str, Path], kept: Kept | None) -> Mapping[str, Tensor] | None:
    """The model that is the node's own: the rule's, or the global one with the tensors that the node has trained."""
    if kept is None:
        return None
    if kept.rule and task.local and rules.build(task.local).is_personal:
        return kept.rule
    return whole(task, models, "global", kept) if kept.private else None


def _finetune(task: Task, models: Mapping[str, Path], folder: Path, report: Report, window: Window) -> Result:
    """Train the global model on, for this node alone: the result stays here, and is scored beside the global one."""
    kept = keep.load(folder.parent, task)
    local, _ = _trained(task, models, "global", folder, report, window, kept)
    own = {name: tensor.detach().cpu() for name, tensor in local.module.state_dict().items()}
    _leave(task, own, folder)
    return _scored(task, {"global": whole(task, models, "global"), "personal": own}, folder, report, window)


def _leave(task: Task, model: Mapping[str, Tensor], folder: Path) -> None:
    """Leave the node's own model for its owner, in place of the one before."""
    place = folder.parent / PERSONAL
    place.mkdir(mode=0o700, exist_ok=True)
    save_checkpoint(place / f"{task.key.node}.ckpt", model, model_args(task))


def _scored(
    task: Task, models: Mapping[str, Mapping[str, Tensor]], folder: Path, report: Report, window: Window
) -> Result:
    setup = set_up(task, folder, report, window, "evaluating")
    flavour = flavour_of(type(setup.model), "LightningModule", task.model)
    scores = {}
    seconds = 0.0
    for label, weights in models.items():
        setup.model.load_state_dict(dict(weights))
        seed_everything(flavour, task.seed)
        setup.telemetry.examples = 0
        began = time.perf_counter()
        metrics = _validate(setup)
        seconds += time.perf_counter() - began
        merged = {name: value for part in metrics for name, value in part.items()}
        scores[label] = Score(examples=setup.telemetry.examples, metrics=numbers(merged))
    return Result(key=task.key, scores=scores, seconds=seconds, accelerator=accelerator(setup.trainer))


def _validate(setup: Setup) -> list[Mapping[str, float]]:
    """Lightning refuses to validate where there is no loader or no step; that is no failure of the node's."""
    lightning = importlib.import_module(flavour_of(type(setup.model), "LightningModule", type(setup.model).__name__))
    has_data = type(setup.data).val_dataloader is not lightning.LightningDataModule.val_dataloader
    if not has_data or type(setup.model).validation_step is lightning.LightningModule.validation_step:
        return []
    found: list[Mapping[str, float]] = setup.trainer.validate(setup.model, datamodule=setup.data, verbose=False)
    return found
