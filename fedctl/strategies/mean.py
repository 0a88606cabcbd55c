"""`fedavg`: the mean of the updates, weighted by their examples.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from Decentralized
Data, AISTATS 2017.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from fedctl.strategies import Contribution, Outcome
from fedctl.strategies.elementwise import in_chunks, in_name_order, largest, wide
from fedctl.weights import Lazy, spec_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """x = sum(w_i x_i) / sum(w_i), with w_i the examples of node i; all count alike where no node has any.

    Floating buffers (BatchNorm's running mean and variance) are averaged like parameters; integers and booleans take
    the largest value of any node. The mean of one update is that update, to the bit. Keeps no memory.
    """

    weighted: ClassVar[bool] = True

    def aggregate(
        self,
        model: Mapping[str, Tensor],  # noqa: ARG002 - the mean starts from nothing
        updates: Sequence[Contribution],
        memory: Mapping[str, Tensor],  # noqa: ARG002
    ) -> Outcome:
        ordered = in_name_order(updates)
        weights = scaled([update.weight for update in ordered])

        def mean(name: str) -> Tensor:
            return mean_of([update.weights[name] for update in ordered], weights)

        return Outcome(model=Lazy(spec_of(ordered[0].weights), mean))


def scaled(weights: Sequence[float]) -> list[float]:
    """The weights times one power of two, which is exact, so that their sum lies in [0.5, 1) and no product overflows.

    Equal weights become powers of two themselves, which keeps the mean of a single double-precision update exact.
    """
    if min(weights) == max(weights):
        weights = [1.0] * len(weights)
    _, exponent = math.frexp(math.fsum(weights))
    return [math.ldexp(weight, -exponent) for weight in weights]


def mean_of(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean of tensors of one shape and dtype, in that dtype; of integers and booleans the largest."""
    dtype = tensors[0].dtype
    if not (dtype.is_floating_point or dtype.is_complex):
        return largest(tensors)
    return in_chunks(partial(mean_of_chunks, weights=weights), tensors, dtype=dtype)


def mean_of_chunks(chunks: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean of flat tensors, in the wider type; `weights` as `scaled` gives them."""
    dtype = wide(chunks[0].dtype)
    total = chunks[0].to(dtype) * weights[0]
    for chunk, weight in zip(chunks[1:], weights[1:], strict=True):
        total.add_(chunk.to(dtype), alpha=weight)
    return total.div_(math.fsum(weights))
