"""What one run of Lightning needs: the user's module, data module and callbacks, a Trainer, and fedctl's own callback.

All are built anew each time and seeded from the task, so a warm process and a cold one give the same bits. Nothing of
the user's is changed: fedctl adds a callback, and switches off what would write files or draw bars (the logger,
checkpoints, the progress bar, the summary).
"""

import importlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fedctl.node.trainers.code import Flavour, flavour_of, load, seed_everything
from fedctl.node.window import Window
from fedctl.privacy import Privacy
from fedctl.records import Progress, Task

Report = Callable[[Progress], None]
TENTHS = 10
"""How fine a training with a masked update tells its progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything new: `telemetry` is fedctl's own callback."""

    model: Any
    data: Any
    trainer: Any
    telemetry: Any


def set_up(
    task: Task,
    folder: Path,
    report: Report,
    window: Window,
    phase: Literal["training", "evaluating"],
    *,
    callbacks: Sequence[Any] = (),
    epochs: int | None = None,
    validates: bool = True,
) -> Setup:
    """The model, the data module and a Trainer with `callbacks` before the user's own; `epochs` in place of the task's.

    Unless it `validates`, a training leaves Lightning's own validation out.
    """
    model_class, data_class = load(task.model), load(task.data)
    flavour = flavour_of(model_class, "LightningModule", task.model)
    flavour_of(data_class, "LightningDataModule", task.data, flavour)
    lightning = importlib.import_module(flavour)
    seed_everything(flavour, task.seed)
    model = model_class(**model_args(task))
    data = data_class(**task.data_args)
    telemetry = _telemetry(lightning, task, report, window, phase)
    options: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
        **task.trainer,
        **({} if epochs is None else {"max_epochs": epochs, "max_steps": -1}),
    }
    if not validates and not options.keys() & {"limit_val_batches", "val_check_interval", "check_val_every_n_epoch"}:
        # The global model is validated in tasks of its own; validating the local one too would double the work.
        options["limit_val_batches"] = 0
    # A rule's come first: what the user's callbacks see of gradients is what the optimizer steps on.
    own = [kind(**each["args"]) for kind, each in callback_classes(task, flavour)]
    options["callbacks"] = [*callbacks, *own, telemetry]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(**options)
    return Setup(model=model, data=data, trainer=trainer, telemetry=telemetry)


def model_args(task: Task) -> dict[str, Any]:
    """The arguments that the task's model is built with."""
    return {**task.model_args, **(task.finetune if task.key.kind == "finetune" else {})}


def lightning_of(task: Task) -> Any:
    """The Lightning of the task's model."""
    return importlib.import_module(flavour_of(load(task.model), "LightningModule", task.model))


def callback_classes(task: Task, flavour: Flavour) -> list[tuple[Any, Mapping[str, Any]]]:
    """The class of each of the user's callbacks, beside what the task says of it."""
    classes = [load(each["class"]) for each in task.callbacks]
    for kind, each in zip(classes, task.callbacks, strict=True):
        flavour_of(kind, "Callback", each["class"], flavour)
    return list(zip(classes, task.callbacks, strict=True))


def accelerator(trainer: Any) -> str:
    """What it trained on, as torch calls it."""
    return f"{trainer.strategy.root_device}"


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Scalars alone, as floats; a diverged one stays NaN."""
    found = {}
    for name, value in metrics.items():
        if isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1):
            found[name] = float(value) if math.isfinite(float(value)) else math.nan
    return found


def _telemetry(
    lightning: Any, task: Task, report: Report, window: Window, phase: Literal["training", "evaluating"]
) -> Any:
    """A callback of the user's Lightning that counts examples, tells the progress, and ends what has to end early."""
    is_quiet = phase == "training" and Privacy.from_json(task.privacy).is_secure
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
            batches = trainer.num_training_batches
            step, steps = index + 1, batches if isinstance(batches, int) else 0
            if is_quiet:  # the number of batches would tell that of examples, which is masked
                step, steps = (TENTHS * step // steps, TENTHS) if steps else (0, 0)
            report(
                Progress(
                    key=task.key,
                    phase=phase,
                    epoch=trainer.current_epoch + 1,
                    epochs=max(trainer.max_epochs or 0, 0),
                    step=step,
                    steps=steps,
                    metrics={} if is_quiet else numbers(trainer.callback_metrics),
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
