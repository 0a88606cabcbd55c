"""The codec `powersgd`: two thin matrices whose product is near.

Vogels, Karimireddy, Jaggi: PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization, NeurIPS
2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedctl.codecs import Step
from fedctl.header import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

_PASSES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSGD:
    """M becomes P Q^T of rank `rank`: P is an orthonormal basis of M Q, then Q = M^T P, twice from a random Q.

    M has a row for each of the first dimension. ||M - P Q^T|| <= ||M||, 0 where M has no higher rank, and near the best
    there is where its singular values fall fast. The paper starts each step from the last one's Q, and so makes do with
    one pass; here a second one stands in for it: nothing is kept on the nodes, rounds differ by more than
    steps do, and error feedback brings over later what was left out. Vectors, and what two matrices would not make
    smaller, stay as they are.
    """

    rank: int = 4

    step: ClassVar[Step] = "selection"
    carried: ClassVar[int] = 2
    exact_everywhere: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank should be at least 1, not {self.rank}")

    def layout(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """P^T and Q^T, a row a direction so that each may have a scale of its own; or the values."""
        if not self._is_smaller(spec.shape, spec.count):
            return (spec,)
        rows = spec.shape[0]
        return TensorSpec(spec.dtype, (self.rank, rows)), TensorSpec(spec.dtype, (self.rank, spec.count // rows))

    def encode(self, values: Tensor, seed: int) -> tuple[Tensor, ...]:
        """As `TensorCodec.encode`."""
        import torch

        if not self._is_smaller(tuple(values.shape), values.numel()):
            return (values.contiguous(),)
        matrix = values.reshape(len(values), -1)
        start = torch.Generator().manual_seed(seed)
        q = torch.randn(self.rank, matrix.shape[1], generator=start, dtype=matrix.dtype)
        for _ in range(_PASSES):
            product = _basis(q) @ matrix.T
            if not bool(product.isfinite().all()):
                return tuple(matrix.new_full((self.rank, length), torch.nan) for length in matrix.shape)
            p = _basis(product)
            q = p @ matrix
        return p, q

    def decode(self, parts: Sequence[Tensor], spec: TensorSpec, seed: int) -> Tensor:  # noqa: ARG002  # the protocol's
        """As `TensorCodec.decode`."""
        if len(parts) == 1:
            return parts[0]
        p, q = parts
        return (p.T @ q).view(spec.shape)

    def _is_smaller(self, shape: tuple[int, ...], count: int) -> bool:
        return len(shape) > 1 and self.rank * (shape[0] + count // shape[0]) < count


def _basis(rows: Tensor) -> Tensor:
    """As many orthonormal rows, which span those."""
    import torch

    found: Tensor = torch.linalg.qr(rows.T).Q.T.contiguous()
    return found
