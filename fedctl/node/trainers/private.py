"""Training by DP-SGD: each example's gradient cut down to a norm, noise on their sum, batches drawn by chance.

Abadi et al., Deep Learning with Differential Privacy, CCS 2016. The gradients of single examples are Opacus', by hooks
on the user's own module; what Lightning is given is a callback that comes before all others and, instead of the user's
loader, one that draws every example by itself. Module, data module and optimizer stay the user's.

Of what leaves the node the guarantee is about the update: all that is trained. Any other tensor stays as the node was
sent it, since a buffer that a training changed would tell of its examples. Metrics have no noise.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.data import DataLoader

from fedctl.dp.accounting import Step
from fedctl.dp.noise import Generator
from fedctl.errors import ConfigError
from fedctl.node.bounds import Bounds
from fedctl.node.rules.gradients import refuse_lbfgs
from fedctl.node.trainers import budget
from fedctl.node.trainers.demands import check_data, check_module, check_rule, check_trainer
from fedctl.privacy import DifferentialPrivacy
from fedctl.records import Task


class DpSgd:
    """One task's training with noise on every step.

    It counts in `steps`, and raises ConfigError before the first step of a training that the budget of the federation,
    or of the node's owner, does not allow.
    """

    def __init__(self, dp: DifferentialPrivacy, history: Sequence[Step], bounds: Bounds) -> None:
        self.dp, self.steps = dp, 0
        self._history, self._bounds = list(history), bounds
        self._generator = Generator()
        self._batches: Batches | None = None

    @classmethod
    def of(cls, task: Task, dp: DifferentialPrivacy, folder: Path) -> "DpSgd":
        """That of the task in a folder; raises ConfigError where it follows a rule that would go around the noise."""
        check_rule(task.local.get("name"))
        return cls(dp, budget.history_of(task), Bounds.of(folder))

    @property
    def result(self) -> dict[str, float]:
        """What `Result.privacy` says of the training, with the epsilon of all of the node's in this run."""
        return budget.metered(self.dp, self._history, (self.dp.noise, self.batches.rate, self.steps))

    def draw(self, data: Any) -> None:
        """Have the data module's training examples drawn by chance: each by itself, for each batch anew."""
        loader = data.train_dataloader

        def train_dataloader() -> Any:
            made = loader()
            check_data(made)
            self._batches = Batches(len(made.dataset), len(made), self._generator.split())
            return _over(made, self._batches)

        data.train_dataloader = train_dataloader

    def callback(self, lightning: Any) -> Any:
        """What puts noise in place of each gradient, before any other callback sees one."""
        private = self

        class Noising(lightning.Callback):  # type: ignore[misc]
            def __init__(self) -> None:
                self.hooks: Any = None
                self.watch: Any = None
                self.optimizer: Any = None
                self.is_noisy = False
                self.rows = 0

            def on_train_start(self, trainer: Any, module: Any) -> None:
                check_module(module)
                check_trainer(trainer)
                refuse_lbfgs(trainer.optimizers[0], rule="differential privacy")
                private.check_budget(trainer.estimated_stepping_batches)
                self.hooks = _hooked(module)
                self.optimizer = _noising(trainer.optimizers[0], private.dp, private.batches, private._generator)
                own = set(self.optimizer.params)

                def look(optimizer: Optimizer, *_: Any) -> None:
                    mine = (each for group in optimizer.param_groups for each in group["params"])
                    if not own.isdisjoint(mine) and not self.is_noisy:
                        raise ConfigError(
                            f"differential privacy does not reach a step of {type(optimizer).__name__}: return it from "
                            "configure_optimizers() and leave its steps to Lightning"
                        )
                    self.is_noisy = False

                self.watch = register_optimizer_step_post_hook(look)

            def on_train_batch_start(self, _trainer: Any, _module: Any, _batch: Any, _index: int) -> None:
                self.rows = private.batches.drawn.popleft()

            def on_before_optimizer_step(self, _trainer: Any, module: Any, _optimizer: Optimizer) -> None:
                _check_rows(module, self.optimizer.params, max(self.rows, 1))
                for each in self.optimizer.params:
                    each.grad_sample = each.grad_sample[: self.rows]
                self.optimizer.pre_step()
                for each in self.optimizer.params:
                    each.grad_sample = each.summed_grad = None
                self.is_noisy = True
                private.steps += 1

            def on_train_end(self, _trainer: Any, _module: Any) -> None:
                self.leave()

            def on_exception(self, _trainer: Any, _module: Any, _error: BaseException) -> None:
                self.leave()

            def leave(self) -> None:
                if self.watch:
                    self.watch.remove()
                if self.hooks:
                    self.hooks.cleanup()

        return Noising()

    @property
    def batches(self) -> "Batches":
        """What the training draws; raises ConfigError where it goes around the data module."""
        if self._batches is None:
            raise ConfigError("differential privacy needs a data module with a train_dataloader()")
        return self._batches

    def check_budget(self, planned: float) -> None:
        """Raises ConfigError where so many more steps would spend more than may be spent."""
        step = (self.dp.noise, self.batches.rate)
        more = self.steps + planned if planned >= 0 else math.inf
        budget.check(self.dp, self._history, self._bounds, step, more)

    def restore(self, module: Any, start: Mapping[str, Tensor]) -> None:
        """Put back all of a trained module that no step with noise has made."""
        trained = {name for name, each in module.named_parameters(remove_duplicate=False) if each.requires_grad}
        state = module.state_dict()
        with torch.no_grad():
            for name in state.keys() - trained:
                state[name].copy_(start[name])


class Batches:
    """Poisson's sampler: each of `examples` is in a batch with the chance `rate`, whichever others are.

    A batch of nobody, which may come up, is the first example's, so that the user's code never sees an empty one;
    `drawn` says how many each batch stands for, in order, and of that one it says 0.
    """

    def __init__(self, examples: int, batches: int, generator: Generator) -> None:
        self.examples, self.rate = examples, 1 / batches
        self.drawn: deque[int] = deque()
        self._batches, self._generator = batches, generator

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        self.drawn.clear()
        for _ in range(self._batches):
            chosen = (self._generator.uniform(self.examples) <= self.rate).nonzero()[0].tolist()
            self.drawn.append(len(chosen))
            yield chosen or [0]


def _over(loader: DataLoader[Any], batches: Batches) -> DataLoader[Any]:
    """The user's loader with other batches."""
    return DataLoader(
        loader.dataset,
        batch_sampler=batches,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def _hooked(module: Any) -> Any:
    """Opacus' hooks, which leave each example's gradient beside that of the batch."""
    from opacus.grad_sample import GradSampleHooks

    try:
        hooks = GradSampleHooks(module, batch_first=True, loss_reduction="mean", strict=True)
    except NotImplementedError as error:
        raise ConfigError(f"differential privacy: {error}") from error
    hooks.forbid_grad_accumulation()
    return hooks


def _noising(optimizer: Any, dp: DifferentialPrivacy, batches: Batches, generator: Generator) -> Any:
    """Opacus' optimizer around the user's, for what it does before a step alone, with noise of ours."""
    from opacus.optimizers import DPOptimizer

    class Noisy(DPOptimizer):  # type: ignore[misc]
        def add_noise(self) -> None:
            std = self.noise_multiplier * self.max_grad_norm
            for each in self.params:
                noise = torch.from_numpy(generator.gaussian(each.numel(), std)).view_as(each)
                each.grad = (each.summed_grad + noise.to(each)).view_as(each)

    return Noisy(
        getattr(optimizer, "optimizer", optimizer),
        noise_multiplier=dp.noise,
        max_grad_norm=dp.clip,
        expected_batch_size=batches.examples * batches.rate,
        loss_reduction="mean",
    )


def _check_rows(module: Any, parameters: Sequence[Tensor], rows: int) -> None:
    """Raises ConfigError where a gradient is not there for each example: what then was cut down is something else."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    for each in parameters:
        found = getattr(each, "grad_sample", None)
        if found is None:
            raise ConfigError(
                f"differential privacy finds no gradients of single examples for `{names[each]}`: call the layer that "
                "it belongs to in every batch, or freeze it with requires_grad_(False)"
            )
        if len(found) != rows:
            raise ConfigError(
                f"differential privacy: `{names[each]}` has {len(found)} gradients for {rows} examples: keep the "
                "examples in the first dimension of what its layer is given"
            )
