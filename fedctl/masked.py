"""An update as one row of whole numbers, as secure aggregation sums it: what of a model is in it, where, and how fine.

Both sides follow the same layout. Of a model its floating tensors are in it, in the order of their names, each as its
way from the model; then how much the update counts. Integers and booleans stay the model's own.

A row of 32 bits has one range for all values. One of 16 bits has values of 8, which so short a range has to fit: each
tensor has its own, by how far it moved in the round before, which every node knows.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedctl.header import TensorSpec
from fedctl.secagg.ring import Scale
from fedctl.weights import Lazy

VECTOR = "masked"
"""The only tensor of a masked update's file."""
LEVEL_BITS = 8
"""Of a value in a row of 16 bits."""
_DIGIT = 1 << (LEVEL_BITS - 1)
"""A count is written in digits below this, so that their sums fit where sums of values do."""
_DIGITS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the tensors of a model, of this `spec`, are in the row of a cohort of so many nodes.

    No value lies beyond `range`, or of a narrow row beyond that of its tensor in `ranges`. An update counts for up to
    `most`. Raises ValueError for a cohort whose sums would overflow.
    """

    spec: Mapping[str, TensorSpec]
    cohort: int
    range: float
    most: int
    ranges: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.cohort * self.most >= 2**31 or (self.ranges is not None and self.most >= _DIGIT**_DIGITS):
            raise ValueError(f"{self.cohort} updates that count for up to {self.most} each cannot be counted")
        if self.ranges is not None and set(self.ranges) != set(self.names):
            raise ValueError("each tensor should have a range, and no other")

    @property
    def names(self) -> list[str]:
        """The tensors that are in it."""
        return sorted(name for name, spec in self.spec.items() if spec.is_floating)

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.spec[name].count for name in self.names)

    @property
    def row(self) -> TensorSpec:
        """What the row is."""
        return TensorSpec("uint16" if self.ranges else "uint32", (self.count + (_DIGITS if self.ranges else 1),))

    @property
    def rounding(self) -> float:
        """The L2 norm that rounding may add to an update at most."""
        return math.sqrt(math.fsum(self.spec[name].count * self.scale(name).step ** 2 for name in self.names))

    def scale(self, name: str) -> Scale:
        """How fine the values of a tensor are."""
        if self.ranges is None:
            return Scale.of(self.range, self.cohort)
        return Scale.of(self.ranges[name], self.cohort, bits=16, level_bits=LEVEL_BITS)

    def encode(
        self, update: Mapping[str, Tensor], base: Mapping[str, Tensor], share: float, counted: int
    ) -> tuple[NDArray[np.unsignedinteger], int]:
        """The row of `share` times the way from the base to the update, and how many of its values were cut off.

        Raises ValueError for what is not finite.
        """
        row, beyond = np.zeros(self.row.shape, self.row.dtype), 0
        for name, part in self._parts():
            ended, began = (one[name].detach().cpu().reshape(-1).double() for one in (update, base))
            _, cut = self.scale(name).encode(ended.sub_(began).mul_(share).numpy(), out=row[part])
            beyond += cut
        row[self.count :] = _digits(counted) if self.ranges else counted
        return row, beyond

    def decode(self, total: NDArray[np.unsignedinteger]) -> tuple[Mapping[str, NDArray[np.float64]], int]:
        """The sums of the ways by tensor, flat, and of what the updates count, from the sum of their rows."""
        last = total[self.count :].tolist()
        counted = sum(digit * _DIGIT**place for place, digit in enumerate(last)) if self.ranges else last[0]
        return {name: self.scale(name).decode(total[part]) for name, part in self._parts()}, int(counted)

    def _parts(self) -> Iterator[tuple[str, slice]]:
        begin = 0
        for name in self.names:
            yield name, slice(begin, begin + self.spec[name].count)
            begin += self.spec[name].count


def moved(base: Mapping[str, Tensor], spec: Mapping[str, TensorSpec], ways: Mapping[str, NDArray[np.float64]]) -> Lazy:
    """The base, moved by the ways of some of its tensors."""

    def tensor(name: str) -> Tensor:
        if name not in ways:
            return base[name]
        way = torch.from_numpy(ways[name]).reshape(spec[name].shape)
        return (base[name].double() + way).to(getattr(torch, spec[name].dtype))

    return Lazy(spec, tensor)


def _digits(counted: int) -> list[int]:
    return [counted // _DIGIT**place % _DIGIT for place in range(_DIGITS)]
