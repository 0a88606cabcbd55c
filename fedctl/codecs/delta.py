"""The codec `delta`: what a tensor has become less what it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedctl.codecs import Step

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """The difference to the model that both sides have.

    Before a codec that loses something it is y - x, in float32 at least. Alone, or with `zstd`, it is exact: the
    difference of the two floats' bits as whole numbers, its sign moved to the last bit so that what is near has zeros
    in front. Such a difference is as large as the tensor, and compresses better.
    """

    step: ClassVar[Step] = "difference"
    exact_everywhere: ClassVar[bool] = True


def bits_apart(values: Tensor, base: Tensor) -> Tensor:
    """The exact difference, as integers of the same width; both tensors are alike, of 1 to 8 bytes an element."""
    ours, theirs = _bits(values), _bits(base)
    apart = ours - theirs
    sign = apart >> (8 * apart.element_size() - 1)
    return apart.bitwise_left_shift_(1).bitwise_xor_(sign)


def bits_joined(apart: Tensor, base: Tensor) -> Tensor:
    """The tensor whose exact difference to `base` this is; whatever the integers are, some tensor has it."""
    width = 8 * apart.element_size()
    found = (apart >> 1).bitwise_and_((1 << (width - 1)) - 1)
    found.bitwise_xor_((apart & 1).neg_()).add_(_bits(base))
    return found.view(base.dtype).view(base.shape)


def _bits(values: Tensor) -> Tensor:
    import torch

    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    return values.detach().cpu().contiguous().reshape(-1).view(whole)
