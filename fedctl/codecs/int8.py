"""The codec `int8`: a byte a value.

Alistarh, Grubic, Li, Tomioka, Vojnović: QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding, NIPS
2017, with the largest magnitude in place of the norm, as its authors ran it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedctl.codecs import Step
from fedctl.codecs.levels import check_rounding, from_levels, scales_of, to_levels
from fedctl.header import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

_MOST = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8:
    """x becomes l s, with s = max |x| / 127 of its channel and l one of the two whole numbers around x / s.

    With `rounding: stochastic` the nearer one is the likelier, so that the mean over seeds is x, and |error| <= s; with
    `nearest` |error| <= s / 2. A channel is a row of the first dimension, or of so many that scales cost little.
    """

    rounding: str = "stochastic"

    step: ClassVar[Step] = "precision"
    carried: ClassVar[int] = 0
    exact_everywhere: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_rounding(self.rounding)

    def layout(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """The levels, and a scale for each channel."""
        return TensorSpec("int8", spec.shape), scales_of(spec)

    def encode(self, values: Tensor, seed: int) -> tuple[Tensor, ...]:
        """As `TensorCodec.encode`."""
        import torch

        levels, scales = to_levels(values, most=_MOST, rounding=self.rounding, seed=seed)
        return torch.from_numpy(levels).view(values.shape), scales

    def decode(self, parts: Sequence[Tensor], spec: TensorSpec, seed: int) -> Tensor:  # noqa: ARG002  # the protocol's
        """As `TensorCodec.decode`."""
        levels, scales = parts
        return from_levels(levels.contiguous().view(-1).numpy(), scales, spec)
