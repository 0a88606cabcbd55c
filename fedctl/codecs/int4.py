"""The codec `int4`: half a byte a value.

Alistarh, Grubic, Li, Tomioka, Vojnović: QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding, NIPS
2017, with the largest magnitude in place of the norm, as its authors ran it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedctl.codecs import Step
from fedctl.codecs.levels import RUN, check_rounding, from_levels, scales_of, to_levels
from fedctl.header import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

_MOST = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Int4:
    """x becomes l s, with s = max |x| / 7 of its channel and l one of the two whole numbers around x / s.

    With `rounding: stochastic` the nearer one is the likelier, so that the mean over seeds is x, and |error| <= s; with
    `nearest` |error| <= s / 2. A channel is a row of the first dimension, or of so many that scales cost little. l + 8
    stands in four bits, the first of two values in the lower ones.
    """

    rounding: str = "stochastic"

    step: ClassVar[Step] = "precision"
    carried: ClassVar[int] = 0
    exact_everywhere: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_rounding(self.rounding)

    def layout(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """The levels, two a byte, and a scale for each channel."""
        return TensorSpec("uint8", (-(-spec.count // 2),)), scales_of(spec)

    def encode(self, values: Tensor, seed: int) -> tuple[Tensor, ...]:
        """As `TensorCodec.encode`."""
        import torch

        levels, scales = to_levels(values, most=_MOST, rounding=self.rounding, seed=seed)
        return torch.from_numpy(_packed(levels)), scales

    def decode(self, parts: Sequence[Tensor], spec: TensorSpec, seed: int) -> Tensor:  # noqa: ARG002  # the protocol's
        """As `TensorCodec.decode`."""
        packed, scales = parts
        return from_levels(_unpacked(packed.numpy())[: spec.count], scales, spec)


def _packed(levels: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two levels a byte, as many bytes as they need."""
    import numpy as np

    packed = np.empty(-(-len(levels) // 2), np.uint8)
    for start in range(0, len(levels), RUN):
        run: NDArray[Any] = levels[start : start + RUN] + np.int8(8)
        pairs = np.append(run, np.int8(8)) if len(run) % 2 else run
        wide = pairs.view(np.uint16)
        np.copyto(packed[start // 2 : (start + RUN) // 2], wide | (wide >> 4), casting="unsafe")
    return packed


def _unpacked(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Two levels of each byte; a byte may hold any."""
    import numpy as np

    levels = np.empty(2 * len(packed), np.int8)
    for start in range(0, len(packed), RUN):
        wide = packed[start : start + RUN].astype(np.uint16)
        wide |= wide << 4
        wide &= 0x0F0F
        np.subtract(wide.view(np.int8), np.int8(8), out=levels[2 * start : 2 * (start + RUN)])
    return levels
