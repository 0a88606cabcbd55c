"""The ground of the rules that correct each step: a term beside the gradient, before an optimizer steps on it.

Such a term is as good as one in the loss, whatever the optimizer makes of gradients: once a step however many batches
a step has, after the gradients of mixed precision are unscaled, before Lightning clips them. Where an optimizer would
step without it the training is refused.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from fedctl.errors import ConfigError
from fedctl.node.rules import Session

Term = Callable[[str, Tensor, Tensor | None], Tensor]
"""Of a parameter's name, the parameter (detached) and its gradient (None: none, as good as zero), what to add to it."""


def correcting(session: Session, term: Term, *, rule: str) -> Any:
    """A callback that adds the term to the gradient of each trainable parameter that travels, before each step.

    The term is asked once for each parameter of a step that is taken, and may look at the gradient but not change it.
    What it gives may be of any shape that broadcasts to the parameter's, and stays as it is.
    The training raises ConfigError, in the name of `rule`, for LBFGS; for gradients that are scaled or sparse; for a
    step that Lightning does not see; and where there were steps but never a gradient.
    """

    class Correcting(session.lightning.Callback):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.names: Mapping[Tensor, str] = {}
            self.seen: set[Tensor] = set()
            """The parameters that had a step with their gradient in reach."""
            self.scaler: Any = None
            self.watch: Any = None
            self.travelling = travelling(session)

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.scaler = scaler_of(trainer)
            for optimizer in trainer.optimizers:
                refuse_lbfgs(optimizer, rule=rule)
                if self.scaler and _unscales_itself(optimizer):
                    raise ConfigError(
                        f"{rule} cannot add to scaled gradients: make {type(optimizer).__name__} without `fused`, "
                        "or train with bf16-mixed"
                    )
            self.names = {parameter: name for name, parameter in module.named_parameters()}

            def look(optimizer: Optimizer, *_: Any) -> None:
                mine = [each for each in _parameters(optimizer) if each in self.names and each.grad is not None]
                if not self.seen.issuperset(mine):
                    raise ConfigError(
                        f"{rule} does not reach a step of {type(optimizer).__name__}: return it from "
                        "configure_optimizers() and step what self.optimizers() gives"
                    )

            self.watch = register_optimizer_step_post_hook(look)

        def on_before_optimizer_step(self, _trainer: Any, _module: Any, optimizer: Optimizer) -> None:
            parameters = [each for each in _parameters(optimizer) if each in self.names]
            if all(each.grad is None for each in parameters):
                return  # the module skipped the batch, and so does the optimizer
            self.seen.update(parameters)
            if self.scaler and not _are_finite(parameters):
                return  # the scaler skips the step
            for each in parameters:
                if self.names[each] in self.travelling:
                    self.correct(each, self.names[each])

        @torch.no_grad()
        def correct(self, parameter: Tensor, name: str) -> None:
            if parameter.grad is not None and parameter.grad.is_sparse:
                raise ConfigError(f"{rule} needs dense gradients: make the embedding without `sparse`")
            added = term(name, parameter.detach(), parameter.grad)
            if parameter.grad is None:
                # Not `added` itself: what comes after, such as clipping, changes gradients in place.
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_(added)

        def on_train_end(self, trainer: Any, _module: Any) -> None:
            self.watch.remove()
            if trainer.global_step and not self.seen:
                raise ConfigError(f"{rule} found no gradient in {trainer.global_step} steps")

        def on_exception(self, _trainer: Any, _module: Any, _error: BaseException) -> None:
            if self.watch:
                self.watch.remove()

    return Correcting()


def travelling(session: Session) -> frozenset[str]:
    """The names of the tensors that the nodes have in common."""
    return frozenset(name for name in session.start if session.share.covers(name))


def nearby(tensors: Mapping[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    """What gives the tensor of a parameter's name, of the parameter's device and dtype; a zero where there is none.

    A tensor is copied when it is first asked for, and then no more: it is for the steps of one training. After that
    the module is on the CPU, and the copies are where it was trained.
    """
    copies: dict[str, Tensor] = {}

    def at(name: str, parameter: Tensor) -> Tensor:
        if name not in copies:
            copies[name] = tensors[name].to(parameter) if name in tensors else parameter.new_zeros(())
        return copies[name]

    return at


def kept(tensors: Mapping[str, Tensor], *, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Copies that can stay on disk: detached, on the CPU, contiguous, of the dtypes of the same names in `like`."""
    types = {name: tensor.dtype for name, tensor in (like or {}).items()}
    return {
        name: tensor.detach().to("cpu", types.get(name, tensor.dtype), copy=True).contiguous()
        for name, tensor in tensors.items()
    }


def refuse_lbfgs(optimizer: Optimizer, *, rule: str) -> None:
    """Raises ConfigError for an optimizer that compares losses, which a rule does not change."""
    if isinstance(optimizer, LBFGS):
        raise ConfigError(f"{rule} changes gradients and not the loss, and LBFGS goes by both")


def scaler_of(trainer: Any) -> Any:
    """What scales the losses of mixed precision; None where nothing does."""
    return getattr(trainer.precision_plugin, "scaler", None)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [each for group in optimizer.param_groups for each in group["params"] if each.requires_grad]


def _are_finite(parameters: list[Tensor]) -> bool:
    return all(bool(each.grad.isfinite().all()) for each in parameters if each.grad is not None)


def _unscales_itself(optimizer: Optimizer) -> bool:
    """Whether Lightning leaves the unscaling of mixed precision to the optimizer, which comes after every hook."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
