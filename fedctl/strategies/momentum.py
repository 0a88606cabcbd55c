"""`fedavgm`: the mean of the updates, approached with momentum.

Hsu, Qi, Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification, 2019
(arXiv:1909.06335).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

from fedctl.errors import ModelError
from fedctl.header import TensorSpec
from fedctl.strategies import Contribution, Outcome

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Momentum:
    """v' = momentum v + (x - mean); x' = x - lr v', with v = 0 at first and `mean` that of `fedavg`.

    A steady direction is followed lr / (1 - momentum) times as far as `fedavg` would: 2 times by default. The paper's
    0.9 goes 10 times as far, which can keep small cohorts with unlike data from converging: it has to be asked for.

    Tensors that match a pattern of `buffers` (statistics: momentum could push a variance below zero), integers and
    booleans are combined as `fedavg` does. The memory is v, in single precision for narrower tensors. Model and memory
    each read every update once.
    """

    momentum: float = 0.5
    lr: float = 1.0
    buffers: tuple[str, ...] = ("*running_mean", "*running_var")
    weighted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum should be at least 0 and below 1, not {self.momentum}")
        if not self.lr > 0:
            raise ValueError(f"lr should be above 0, not {self.lr}")

    def aggregate(
        self, model: Mapping[str, Tensor], updates: Sequence[Contribution], memory: Mapping[str, Tensor]
    ) -> Outcome:
        """As `Strategy.aggregate`; raises ModelError where `model` is empty."""
        import torch

        from fedctl.strategies.elementwise import (
            in_chunks,
            in_name_order,
            is_averaged,
            mean_of,
            mean_of_chunks,
            scaled,
            wide,
        )
        from fedctl.weights import Lazy, spec_of

        if not model:
            raise ModelError("fedavgm moves the model that the updates started from, and none was given")
        ordered = in_name_order(updates)
        weights = scaled([update.weight for update in ordered])
        spec = spec_of(ordered[0].weights)
        velocities = {
            name: TensorSpec(_velocity_dtype(tensor.dtype), tensor.shape)
            for name, tensor in spec.items()
            if is_averaged(tensor) and not any(fnmatchcase(name, pattern) for pattern in self.buffers)
        }

        def velocity(chunks: Sequence[Tensor]) -> Tensor:
            old, start, *ends = chunks
            dtype = wide(start.dtype)
            return old.to(dtype) * self.momentum + (start.to(dtype) - mean_of_chunks(ends, weights))

        def moved(chunks: Sequence[Tensor]) -> Tensor:
            start = chunks[1]
            return start.to(wide(start.dtype)) - self.lr * velocity(chunks)

        def operands(name: str) -> list[Tensor]:
            old = memory[name] if name in memory else torch.zeros_like(model[name])
            return [old, model[name], *(update.weights[name] for update in ordered)]

        def next_tensor(name: str) -> Tensor:
            if name not in velocities:
                return mean_of([update.weights[name] for update in ordered], weights)
            return in_chunks(moved, operands(name), dtype=model[name].dtype)

        def next_velocity(name: str) -> Tensor:
            return in_chunks(velocity, operands(name), dtype=getattr(torch, velocities[name].dtype))

        return Outcome(model=Lazy(spec, next_tensor), memory=Lazy(velocities, next_velocity))


def _velocity_dtype(dtype: str) -> str:
    return dtype if dtype in {"float64", "float32", "complex64"} else "float32"
