"""`median`: the median of the updates, coordinate by coordinate.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedctl.strategies import Contribution, Outcome
from fedctl.strategies.elementwise import CHUNK, in_chunks, in_name_order, largest, wide
from fedctl.weights import Lazy, spec_of

_MOST = 1 << 20  # values sorted at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Median:
    """The middle value of each coordinate, of an even number of updates the mean of the middle two.

    Fewer than half of the nodes cannot move it without bound. Every node counts alike, whatever its examples. Complex
    tensors take the median of real and imaginary parts apart; integers and booleans take the largest value of any node.
    The median of one update is that update, to the bit. Keeps no memory.
    """

    weighted: ClassVar[bool] = False

    def aggregate(
        self,
        model: Mapping[str, Tensor],  # noqa: ARG002 - the median starts from nothing
        updates: Sequence[Contribution],
        memory: Mapping[str, Tensor],  # noqa: ARG002
    ) -> Outcome:
        ordered = in_name_order(updates)

        def median(name: str) -> Tensor:
            return median_of([update.weights[name] for update in ordered])

        return Outcome(model=Lazy(spec_of(ordered[0].weights), median))


def median_of(tensors: Sequence[Tensor]) -> Tensor:
    """The coordinate-wise median of tensors of one shape and dtype, in that dtype."""
    dtype = tensors[0].dtype
    if dtype.is_complex:
        return torch.view_as_complex(median_of([torch.view_as_real(tensor) for tensor in tensors]))
    if not dtype.is_floating_point:
        return largest(tensors)
    return in_chunks(_median, tensors, dtype=dtype, chunk=max(1, min(CHUNK, _MOST // len(tensors))))


def _median(chunks: Sequence[Tensor]) -> Tensor:
    dtype, count = chunks[0].dtype, len(chunks)
    columns = torch.stack([chunk.to(dtype if dtype.itemsize >= 4 else torch.float32) for chunk in chunks], dim=1)
    columns.numpy().sort(axis=1)  # in place, and several times as fast as torch's own
    if count % 2:
        return columns[:, count // 2]
    lower, upper = columns[:, count // 2 - 1].to(wide(dtype)), columns[:, count // 2].to(wide(dtype))
    return lower / 2 + upper / 2
