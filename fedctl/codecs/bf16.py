"""The codec `bf16`: the upper half of a float32, rounded to the nearest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedctl.codecs import Step
from fedctl.header import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class BF16:
    """|error| <= |x| / 2^8, whatever the magnitude of x between 1e-38 and 3.3e38; beyond that it is not finite."""

    step: ClassVar[Step] = "precision"
    carried: ClassVar[int] = 0
    exact_everywhere: ClassVar[bool] = True

    def layout(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """The values."""
        return (TensorSpec("bfloat16", spec.shape),)

    def encode(self, values: Tensor, seed: int) -> tuple[Tensor, ...]:  # noqa: ARG002  # the protocol's
        """As `TensorCodec.encode`."""
        return (values.contiguous().bfloat16(),)

    def decode(self, parts: Sequence[Tensor], spec: TensorSpec, seed: int) -> Tensor:  # noqa: ARG002  # the protocol's
        """As `TensorCodec.decode`."""
        import torch

        return parts[0].to(getattr(torch, spec.dtype))
