"""`fedprox`: a training is drawn back to the model that it started from.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks, MLSys 2020.
"""

from dataclasses import dataclass
from typing import Any

from fedctl.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class FedProx:
    """A node minimises F_i(y) + mu/2 |y - x|², x being the round's model: each gradient of y has mu (y - x) added.

    Of trainable parameters alone, once a step of an optimizer, just as if the term were in the loss: where precision is
    mixed after the gradients are unscaled, and before Lightning clips them.
    """

    mu: float = 0.01

    def __post_init__(self) -> None:
        if self.mu < 0:
            raise ValueError(f"mu should be at least 0, not {self.mu}")

    def callback(self, lightning: Any) -> Any:
        """As `Rule.callback`; it raises ConfigError where the term does not reach what an optimizer steps on."""
        from torch.optim import LBFGS
        from torch.optim.optimizer import register_optimizer_step_post_hook

        mu = self.mu

        class Proximal(lightning.Callback):  # type: ignore[misc]
            def __init__(self) -> None:
                self.starts: dict[Any, Any] = {}
                """Each parameter as it was before its first step."""
                self.watch: Any = None

            def on_train_start(self, trainer: Any, module: Any) -> None:
                for optimizer in trainer.optimizers:
                    if isinstance(optimizer, LBFGS):
                        raise ConfigError("fedprox changes gradients and not the loss, and LBFGS goes by both")
                    if getattr(trainer.precision_plugin, "scaler", None) and _unscales_itself(optimizer):
                        raise ConfigError(
                            f"fedprox cannot add to scaled gradients: make {type(optimizer).__name__} without `fused`, "
                            "or train with bf16-mixed"
                        )
                own = frozenset(module.parameters())

                def look(optimizer: Any, *_: Any) -> None:
                    if any(each in own and each.grad is not None and each not in self.starts for each in of(optimizer)):
                        raise ConfigError(
                            f"fedprox does not reach a step of {type(optimizer).__name__}: return it from "
                            "configure_optimizers() and step what self.optimizers() gives"
                        )

                self.watch = register_optimizer_step_post_hook(look)

            def on_before_optimizer_step(self, _trainer: Any, _module: Any, optimizer: Any) -> None:
                parameters = of(optimizer)
                if all(each.grad is None for each in parameters):
                    return  # the module skipped the batch, and so does the optimizer
                for each in parameters:
                    value = each.detach()
                    if each not in self.starts:
                        self.starts[each] = value.clone()
                    if each.grad is None:
                        each.grad = mu * (value - self.starts[each])
                    elif each.grad.is_sparse:
                        raise ConfigError("fedprox needs dense gradients: make the embedding without `sparse`")
                    else:
                        each.grad.add_(value - self.starts[each], alpha=mu)

            def on_train_end(self, trainer: Any, _module: Any) -> None:
                self.watch.remove()
                if trainer.global_step and not self.starts:
                    raise ConfigError(f"fedprox found no gradient in {trainer.global_step} steps")

            def on_exception(self, _trainer: Any, _module: Any, _error: BaseException) -> None:
                if self.watch:
                    self.watch.remove()

        def of(optimizer: Any) -> list[Any]:
            return [each for group in optimizer.param_groups for each in group["params"] if each.requires_grad]

        return Proximal()


def _unscales_itself(optimizer: Any) -> bool:
    """Whether Lightning leaves the unscaling of mixed precision to the optimizer, which comes after every hook."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
