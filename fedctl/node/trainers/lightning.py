"""Trains the user's LightningModule with the Lightning that it subclasses: `lightning.pytorch` or `pytorch_lightning`.

The module and the data module are built anew for every task and everything is seeded from the task, so a warm process
and a cold one give the same bits. Nothing of the user's is changed: fedctl adds a callback, that of the local rule too,
and switches off what would write files or draw bars (the logger, checkpoints, the progress bar, the summary).
"""

import importlib
import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from fedctl.codecs import build
from fedctl.errors import ConfigError, Declined
from fedctl.node import rules
from fedctl.node.trainers.code import Flavour, bind, flavour_of, load, place
from fedctl.node.window import Window
from fedctl.records import Progress, Result, Score, Task
from fedctl.weights import Weights, save

Report = Callable[[Progress], None]


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
            return _train(task, models["base"], folder, report, window)
        case "evaluate" | "compare":
            return _evaluate(task, models, folder, report, window)


def _initialize(task: Task, folder: Path) -> Result:
    """Build the first model from the user's code and the seed, and check that the data module can be built."""
    model_class = load(task.model)
    flavour = flavour_of(model_class, "LightningModule", task.model)
    data_class = load(task.data)
    flavour_of(data_class, "LightningDataModule", task.data, flavour)
    if data_class.train_dataloader is importlib.import_module(flavour).LightningDataModule.train_dataloader:
        raise ConfigError(f"{place(data_class, task.data)} has no train_dataloader()")
    bind(model_class, task.model, task.model_args, "model_args")
    for node, arguments in task.data_args.items():
        bind(data_class, task.data, arguments, f"data_args, or the data of node {node},")
    for kind, each in _callback_classes(task, flavour):
        bind(kind, each["class"], each["args"], "callbacks")
    _seed(flavour, task.seed)
    model = model_class(**task.model_args)
    return Result(key=task.key, update=save(folder / "update.safetensors", model.state_dict()))


def _train(task: Task, base: Path, folder: Path, report: Report, window: Window) -> Result:
    """Train without Lightning's own validation, and with it where a scheduler or a callback waits for its metric."""
    try:
        return _trained(task, base, folder, report, window, validates=False)
    except Declined:
        raise
    except Exception as error:
        if "not available" not in str(error):
            raise
    return _trained(task, base, folder, report, window, validates=True)


def _trained(task: Task, base: Path, folder: Path, report: Report, window: Window, *, validates: bool) -> Result:
    model, data, trainer, callback = _prepare(task, folder, report, window, "training", validates=validates)
    model.load_state_dict(dict(build(task.codec).decode(Weights.open(base))))
    _seed(_flavour(model), task.seed)
    began = time.perf_counter()
    try:
        trainer.fit(model, datamodule=data)
    except ValueError as error:
        if "num_samples=0" in str(error):  # what torch's own sampler says of a data set without a row
            raise ConfigError(_empty(task)) from error
        raise
    seconds = time.perf_counter() - began
    if trainer.interrupted:
        raise RuntimeError("the training was interrupted")
    if callback.examples == 0:
        raise ConfigError(_empty(task))
    report(Progress(key=task.key, phase="saving"))
    update = save(folder / "update.safetensors", build(task.codec).encode(model.state_dict()))
    return Result(
        key=task.key,
        examples=callback.examples,
        metrics=_numbers(trainer.callback_metrics),
        update=update,
        steps=trainer.global_step,
        partial=callback.was_cut,
        seconds=seconds,
        accelerator=_accelerator(trainer),
    )


def _empty(task: Task) -> str:
    return f"{task.data} gives node {task.key.node} no training batch: its data is empty, or its batch size too large"


def _evaluate(task: Task, models: Mapping[str, Path], folder: Path, report: Report, window: Window) -> Result:
    """Validate each of the models on this node's own validation data."""
    model, data, trainer, callback = _prepare(task, folder, report, window, "evaluating")
    scores = {}
    seconds = 0.0
    for label, path in models.items():
        model.load_state_dict(dict(build(task.codec).decode(Weights.open(path))))
        _seed(_flavour(model), task.seed)
        callback.examples = 0
        began = time.perf_counter()
        metrics = trainer.validate(model, datamodule=data, verbose=False) if _has_validation(data, model) else []
        seconds += time.perf_counter() - began
        merged = {name: value for part in metrics for name, value in part.items()}
        scores[label] = Score(examples=callback.examples, metrics=_numbers(merged))
    return Result(key=task.key, scores=scores, seconds=seconds, accelerator=_accelerator(trainer))


def _prepare(
    task: Task,
    folder: Path,
    report: Report,
    window: Window,
    phase: Literal["training", "evaluating"],
    *,
    validates: bool = True,
) -> tuple[Any, ...]:
    """The model, the data module, a Trainer and fedctl's callback, all new."""
    model_class, data_class = load(task.model), load(task.data)
    flavour = flavour_of(model_class, "LightningModule", task.model)
    flavour_of(data_class, "LightningDataModule", task.data, flavour)
    lightning = importlib.import_module(flavour)
    _seed(flavour, task.seed)
    model = model_class(**task.model_args)
    data = data_class(**task.data_args)
    callback = _callback(lightning, task, report, window, phase)
    options: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
        **task.trainer,
    }
    if not validates and not options.keys() & {"limit_val_batches", "val_check_interval", "check_val_every_n_epoch"}:
        # The global model is validated in tasks of its own; validating the local one too would double the work.
        options["limit_val_batches"] = 0
    # The rule comes first: what the user's callbacks see of gradients is what the optimizer steps on.
    local = [rules.build(task.local).callback(lightning)] if task.local and phase == "training" else []
    own = [kind(**each["args"]) for kind, each in _callback_classes(task, flavour)]
    options["callbacks"] = [*local, *own, callback]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(**options)
    return model, data, trainer, callback


def _callback_classes(task: Task, flavour: Flavour) -> list[tuple[Any, Mapping[str, Any]]]:
    """The class of each of the user's callbacks, beside what the task says of it."""
    classes = [load(each["class"]) for each in task.callbacks]
    for kind, each in zip(classes, task.callbacks, strict=True):
        flavour_of(kind, "Callback", each["class"], flavour)
    return list(zip(classes, task.callbacks, strict=True))


def _callback(
    lightning: Any, task: Task, report: Report, window: Window, phase: Literal["training", "evaluating"]
) -> Any:
    """A callback of the user's Lightning that counts examples, tells the progress, and ends what has to end early."""
    extract_batch_size = importlib.import_module(f"{lightning.__name__}.utilities.data").extract_batch_size

    def count(batch: Any) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return int(extract_batch_size(batch))
            except Exception:  # a batch without a tensor; Lightning trains on it all the same
                return 1

    class Telemetry(lightning.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.examples = 0
            """Examples of one pass over the data: those of the first epoch."""
            self.was_cut = False

        def on_train_batch_end(self, trainer: Any, _module: Any, _outputs: Any, batch: Any, index: int) -> None:
            if trainer.current_epoch == 0:
                self.examples += count(batch)
            steps = trainer.num_training_batches
            report(
                Progress(
                    key=task.key,
                    phase=phase,
                    epoch=trainer.current_epoch + 1,
                    epochs=max(trainer.max_epochs or 0, 0),
                    step=index + 1,
                    steps=steps if isinstance(steps, int) else 0,
                    metrics=_numbers(trainer.callback_metrics),
                )
            )
            no = window.closed()
            if no and not task.partial:
                raise no
            # Lightning ends by itself after its last batch; before the first step there is nothing to hand in.
            if (no or window.is_over) and trainer.global_step and not _is_at_its_end(trainer):
                self.was_cut = trainer.should_stop = True
                trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = 0

        def on_validation_batch_end(
            self, _trainer: Any, _module: Any, _outputs: Any, batch: Any, index: int, _dataloader: int = 0
        ) -> None:
            if phase == "evaluating":
                self.examples += count(batch)
                report(Progress(key=task.key, phase=phase, step=index + 1))
                if no := window.closed():
                    raise no

    return Telemetry()


def _is_at_its_end(trainer: Any) -> bool:
    """Whether a training has come to its last batch; -1 stands for no limit."""
    is_last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
    return bool(trainer.global_step == trainer.max_steps or (trainer.is_last_batch and is_last_epoch))


def _has_validation(data: Any, model: Any) -> bool:
    """Lightning refuses to validate where there is no loader or no step; that is no failure of the node's."""
    lightning = importlib.import_module(_flavour(model))
    return (
        type(data).val_dataloader is not lightning.LightningDataModule.val_dataloader
        and type(model).validation_step is not lightning.LightningModule.validation_step
    )


def _flavour(model: Any) -> Flavour:
    return flavour_of(type(model), "LightningModule", type(model).__name__)


def _seed(flavour: Flavour, seed: int) -> None:
    """Seed Python, NumPy and torch; `seed` is below 2**32."""
    importlib.import_module(flavour).seed_everything(seed, verbose=False)


def _accelerator(trainer: Any) -> str:
    return f"{trainer.strategy.root_device}"


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Scalars alone, as floats; a diverged one stays NaN."""
    numbers = {}
    for name, value in metrics.items():
        if isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1):
            numbers[name] = float(value) if math.isfinite(float(value)) else math.nan
    return numbers
