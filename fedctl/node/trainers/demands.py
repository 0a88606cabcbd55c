"""What DP-SGD demands of a module, a Trainer and a loader: what it cannot bear, each with what to write instead."""

from typing import Any

from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from fedctl.errors import ConfigError

RULES = ("fedprox", "ditto")
"""Local rules that only do something to a gradient that has its noise, or to a model that stays on the node."""


def check_rule(name: str | None) -> None:
    """Refuse a local rule that looks at gradients without noise, or changes what is trained."""
    if name is not None and name not in RULES:
        raise ConfigError(
            f"local: {name} sends or trains what differential privacy does not cover",
            hint=f"choose {' or '.join(RULES)}, or none",
        )


def check_module(module: Any) -> None:
    """Refuse a layer that mixes examples, or whose gradient cannot be had for each of them, by its name."""
    from opacus.validators import ModuleValidator

    if not module.automatic_optimization:
        raise ConfigError("differential privacy needs automatic optimization: leave the steps to Lightning")
    for name, each in module.named_modules():
        kind = type(each).__name__
        if isinstance(each, nn.modules.batchnorm._BatchNorm) and (each.training or not each.track_running_stats):  # noqa: SLF001
            raise ConfigError(
                f"differential privacy: {kind} `{name}` mixes the examples of a batch: replace it by GroupNorm, as "
                "opacus.validators.ModuleValidator.fix(module) does"
            )
        if getattr(each, "sparse", False) is True:
            raise ConfigError(f"differential privacy needs dense gradients: make {kind} `{name}` without `sparse`")
        is_trained = any(parameter.requires_grad for parameter in each.parameters(recurse=False))
        if is_trained and (check := ModuleValidator.VALIDATORS.get(type(each))) and check(each):
            raise ConfigError(
                f"differential privacy cannot take apart what {kind} `{name}` does to single examples: replace it, as "
                "opacus.validators.ModuleValidator.fix(module) does"
            )
        if is_trained and next(each.buffers(), None) is not None:
            raise ConfigError(
                f"differential privacy: {kind} `{name}` has buffers beside what is trained, which take no noise: "
                "keep them in a module of their own, or compute them anew"
            )


def check_trainer(trainer: Any) -> None:
    """Refuse a way of training in which a step is not one batch's gradient in full precision."""
    if trainer.accumulate_grad_batches != 1:
        raise ConfigError(
            "differential privacy takes a step a batch: leave accumulate_grad_batches out, and make the batches larger"
        )
    if trainer.precision not in ("32-true", "64-true"):
        raise ConfigError(f"differential privacy needs full precision, not {trainer.precision}: leave `precision` out")
    if trainer.world_size != 1:
        raise ConfigError(f"differential privacy trains on one device, not {trainer.world_size}: say `devices: 1`")
    if trainer.overfit_batches:
        raise ConfigError("differential privacy draws its batches by chance: leave overfit_batches out")


def check_data(loader: Any) -> None:
    """Refuse a loader of which examples cannot be drawn one by one."""
    if not isinstance(loader, DataLoader):
        kind = type(loader).__name__
        raise ConfigError(f"differential privacy needs train_dataloader() to return a DataLoader, not a {kind}")
    if isinstance(loader.dataset, IterableDataset):
        raise ConfigError("differential privacy draws examples by their number, and an IterableDataset has none")
    if loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler:
        raise ConfigError("differential privacy draws its batches itself: give the DataLoader a batch_size alone")
    sampler = loader.sampler
    if not (type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement)):
        raise ConfigError(
            f"differential privacy draws every example with the same chance, so {type(sampler).__name__} has no place: "
            "give the DataLoader `shuffle=True` instead"
        )
    if len(sampler) != len(loader.dataset):  # type: ignore[arg-type]
        raise ConfigError("differential privacy draws from all examples: make a Subset, not a shorter sampler")
