"""The codec `randk`: values at places drawn at random, which the other side draws as well.

Stich, Cordonnier, Jaggi: Sparsified SGD with Memory, NeurIPS 2018.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedctl.codecs import Step
from fedctl.codecs.kept import WHOLE, check_kept, kept
from fedctl.header import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class RandK:
    """C(x): of n values k = `keep` n at random places, each as likely as any other; the others are 0 there.

    E ||x - C(x)||^2 = (1 - k / n) ||x||^2. The values are not made larger by n / k: that would make the mean right, and
    with error feedback, which brings over later what was left out, it would count them too often.

    A tensor of at most `whole` values keeps them all.
    """

    keep: float = 0.1
    whole: int = WHOLE

    step: ClassVar[Step] = "selection"
    carried: ClassVar[int] = 1
    exact_everywhere: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_kept(self.keep, self.whole)

    def layout(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """The values; where they stand follows from the seed."""
        return (TensorSpec(spec.dtype, (kept(spec.count, self.keep, self.whole),)),)

    def encode(self, values: Tensor, seed: int) -> tuple[Tensor, ...]:
        """As `TensorCodec.encode`."""
        flat = values.reshape(-1)
        chosen = kept(len(flat), self.keep, self.whole)
        if not all(math.isfinite(float(each)) for each in flat.aminmax()):
            return (flat.new_full((chosen,), math.nan),)
        return (flat[_places(len(flat), chosen, seed)],)

    def decode(self, parts: Sequence[Tensor], spec: TensorSpec, seed: int) -> Tensor:
        """As `TensorCodec.decode`."""
        import torch

        whole = torch.zeros(spec.count, dtype=parts[0].dtype)
        whole[_places(spec.count, len(parts[0]), seed)] = parts[0]
        return whole.view(spec.shape)


def _places(count: int, chosen: int, seed: int) -> Tensor:
    """That many different places below `count`, of whole numbers alone: the same with every numpy, on every machine.

    One is drawn from each of `chosen` stretches of equal length, which begin anywhere and go round.
    """
    import numpy as np
    import torch

    drawn = (np.random.PCG64(seed).random_raw(chosen + 1) >> 1).astype(np.int64)
    length, longer = divmod(count, chosen)
    number = np.arange(chosen)
    within = drawn[1:] % (length + (number < longer))
    found = number * length + np.minimum(number, longer) + within + drawn[0] % count
    return torch.from_numpy(np.where(found < count, found, found - count))
