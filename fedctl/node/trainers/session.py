"""One node's training as a local rule runs it: `rules.Session` over Lightning."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fedctl.errors import ConfigError
from fedctl.node.keep import Kept
from fedctl.node.trainers.code import flavour_of, seed_everything
from fedctl.node.trainers.fitting import Report, Setup, lightning_of, set_up
from fedctl.node.trainers.parts import share_of, whole
from fedctl.node.window import Window
from fedctl.privacy import Privacy
from fedctl.records import MEMORY, Task
from fedctl.weights import Weights

if TYPE_CHECKING:
    from fedctl.node.trainers.private import DpSgd


class Session:
    """As `rules.Session`. `counted` is the fit that the task tells of, `seconds` what all fits took together.

    That fit, of which the update comes, is the one with noise where `private` says so.
    """

    counted: Setup

    def __init__(
        self,
        task: Task,
        models: Mapping[str, Path],
        label: str,
        folder: Path,
        report: Report,
        window: Window,
        kept: Kept | None,
        *,
        validates: bool,
    ) -> None:
        self.lightning = lightning_of(task)
        self.share = share_of(task)
        self.start: Mapping[str, Tensor] = whole(task, models, label, kept)
        self.memory: Mapping[str, Tensor] = Weights.open(models[MEMORY]) if MEMORY in models else {}
        self.kept: Mapping[str, Tensor] = kept.rule if kept else {}
        self.optimizers: dict[str, Any] | None = None
        self.seconds = 0.0
        self._task, self._folder, self._report, self._window = task, folder, report, window
        self._earlier = kept.optimizers if kept else None
        self._validates = validates
        self.private = _private(task, folder)

    def fit(
        self,
        *callbacks: Any,
        start: Mapping[str, Tensor] | None = None,
        epochs: int | None = None,
        counts: bool = True,
    ) -> Any:
        """As `rules.Session.fit`; raises ConfigError where the node has no training batch."""
        task = self._task
        keeper = [] if task.reset_optimizer or not counts else [self._keeper()]
        private = self.private if counts else None
        noising = [private.callback(self.lightning)] if private else []
        setup = set_up(
            task,
            self._folder,
            self._report,
            self._window,
            "training",
            callbacks=[*noising, *keeper, *callbacks],
            epochs=epochs,
            validates=self._validates,
        )
        begun = self.start if start is None else start
        setup.model.load_state_dict(dict(begun))
        if private:
            private.draw(setup.data)
        seed_everything(flavour_of(type(setup.model), "LightningModule", task.model), task.seed)
        began = time.perf_counter()
        try:
            setup.trainer.fit(setup.model, datamodule=setup.data)
        except ValueError as error:
            if "num_samples=0" in str(error):  # what torch's own sampler says of a data set without a row
                raise ConfigError(_empty(task)) from error
            raise
        self.seconds += time.perf_counter() - began
        if setup.trainer.interrupted:
            raise RuntimeError("the training was interrupted")
        if setup.telemetry.examples == 0:
            raise ConfigError(_empty(task))
        if private:
            private.restore(setup.model, begun)
        if counts:
            self.counted = setup
        return setup.model

    def _keeper(self) -> Any:
        """A callback that has optimizers, schedulers and scaler go on, and takes them down as they end."""
        session = self

        class Keeper(self.lightning.Callback):  # type: ignore[misc, name-defined]
            def on_train_start(self, trainer: Any, _module: Any) -> None:
                if session._earlier is not None:
                    for each, state in zip(_stepped(trainer), session._earlier["states"], strict=True):
                        each.load_state_dict(state)

            def on_train_end(self, trainer: Any, _module: Any) -> None:
                session.optimizers = {"states": [each.state_dict() for each in _stepped(trainer)]}

        return Keeper()


def _stepped(trainer: Any) -> list[Any]:
    """Everything of a Trainer whose state goes on from step to step beside the module, in a fixed order."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    return [*trainer.optimizers, *schedulers, trainer.precision_plugin]


def _private(task: Task, folder: Path) -> "DpSgd | None":
    """What adds noise to a training whose update leaves the node, where each node adds its own."""
    dp = Privacy.from_json(task.privacy).differential_privacy
    if dp is None or dp.mode != "local" or task.key.kind not in ("train", "alone"):
        return None
    from fedctl.node.trainers.private import DpSgd  # its libraries are on nodes that add noise, and on no other

    return DpSgd.of(task, dp, folder)


def _empty(task: Task) -> str:
    return f"{task.data} gives node {task.key.node} no training batch: its data is empty, or its batch size too large"
