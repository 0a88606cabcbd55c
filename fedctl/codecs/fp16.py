"""The codec `fp16`: half precision, with one scale a tensor so that no magnitude is out of its reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedctl.codecs import Step
from fedctl.codecs.levels import RUN
from fedctl.header import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

_TOP = 15  # values are brought below 2**15, which half precision holds


@dataclass(frozen=True, slots=True, kw_only=True)
class FP16:
    """x becomes h s, with s the power of two that brings max |x| of the tensor between 2^14 and 2^15.

    |error| <= |x| / 2^11 down to max |x| / 2^28, and <= max |x| / 2^39 below.
    """

    step: ClassVar[Step] = "precision"
    carried: ClassVar[int] = 0
    exact_everywhere: ClassVar[bool] = True

    def layout(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """The values, and their scale."""
        return TensorSpec("float16", spec.shape), TensorSpec(spec.dtype, (1,))

    def encode(self, values: Tensor, seed: int) -> tuple[Tensor, ...]:  # noqa: ARG002  # the protocol's
        """As `TensorCodec.encode`."""
        import torch

        flat = values.reshape(-1)
        least, most = (float(each) for each in flat.aminmax())
        _, exponent = math.frexp(max(-least, most))
        scale = max(math.ldexp(1.0, exponent - _TOP), torch.finfo(values.dtype).tiny)
        halves = torch.empty(len(flat), dtype=torch.float16)
        for start in range(0, len(flat), RUN):
            halves[start : start + RUN] = flat[start : start + RUN] * (1 / scale)
        return halves.view(values.shape), torch.full((1,), scale, dtype=values.dtype)

    def decode(self, parts: Sequence[Tensor], spec: TensorSpec, seed: int) -> Tensor:  # noqa: ARG002  # the protocol's
        """As `TensorCodec.decode`."""
        import torch

        halves, scale = parts[0].reshape(-1), parts[1]
        values = torch.empty(spec.count, dtype=scale.dtype)
        for start in range(0, spec.count, RUN):
            values[start : start + RUN] = halves[start : start + RUN]
            values[start : start + RUN] *= scale
        return values.view(spec.shape)
