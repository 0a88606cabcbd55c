"""The codec `topk`: the values of the largest magnitude, and where they stand.

Stich, Cordonnier, Jaggi: Sparsified SGD with Memory, NeurIPS 2018; Lin, Han, Mao, Wang, Dally: Deep Gradient
Compression, ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedctl.codecs import Step
from fedctl.codecs.kept import WHOLE, check_kept, kept
from fedctl.errors import ModelError
from fedctl.header import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

_SAMPLE = 1 << 16  # values that a first guess at the smallest magnitude to be kept is taken from


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """C(x): of n values the `keep` n of the largest magnitude; the others are 0 on the other side.

    A tensor of at most `whole` values keeps them all.

    ||x - C(x)||^2 <= (1 - keep) ||x||^2, and error feedback brings over later what was left out (Karimireddy and
    others: Error Feedback Fixes SignSGD and other Gradient Compression Schemes, ICML 2019). Where each value stands is
    told by its distance to the one before.
    """

    keep: float = 0.01
    whole: int = WHOLE

    step: ClassVar[Step] = "selection"
    carried: ClassVar[int] = 1
    exact_everywhere: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_kept(self.keep, self.whole)

    def layout(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """The values, and the distance of each to the one before it."""
        count = kept(spec.count, self.keep, self.whole)
        return TensorSpec(spec.dtype, (count,)), TensorSpec("int32" if spec.count < 1 << 31 else "int64", (count,))

    def encode(self, values: Tensor, seed: int) -> tuple[Tensor, ...]:  # noqa: ARG002  # the protocol's
        """As `TensorCodec.encode`."""
        import numpy as np
        import torch

        flat = values.contiguous().view(-1).numpy()
        places = _largest(flat, kept(len(flat), self.keep, self.whole))
        gaps = np.diff(places, prepend=0).astype(np.int32 if len(flat) < 1 << 31 else np.int64)
        return torch.from_numpy(flat[places]), torch.from_numpy(gaps)

    def decode(self, parts: Sequence[Tensor], spec: TensorSpec, seed: int) -> Tensor:  # noqa: ARG002  # the protocol's
        """As `TensorCodec.decode`; raises ModelError where values would stand outside of the tensor, or twice."""
        import torch

        values, gaps = parts
        if not (0 <= int(gaps[0]) < spec.count and bool(((gaps[1:] > 0) & (gaps[1:] < spec.count)).all())):
            raise ModelError("topk: a value has no place in its tensor")
        places = gaps.cumsum(0, dtype=torch.int64)
        # Where so many gaps overflow, the first sum that does is below zero.
        if not (int(places.min()) >= 0 and int(places[-1]) < spec.count):
            raise ModelError("topk: a value has no place in its tensor")
        whole = torch.zeros(spec.count, dtype=values.dtype)
        whole[places] = values
        return whole.view(spec.shape)


def _largest(values: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Where the `count` largest magnitudes stand, ascending; of equal ones the first; NaN is larger than any."""
    import numpy as np

    # As whole numbers floats without their sign have the same order, and NaN has its place in it.
    sizes = np.abs(values).view(f"i{values.itemsize}")
    places = _candidates(sizes, count)
    sizes = sizes[places]
    least = np.partition(sizes, len(sizes) - count)[len(sizes) - count]
    is_kept = sizes > least
    is_kept[np.flatnonzero(sizes == least)[: count - np.count_nonzero(is_kept)]] = True
    found: NDArray[np.int64] = places[is_kept]
    return found


def _candidates(sizes: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Places, ascending, among which the `count` largest are: by a guess from a sample, and all where it fails."""
    import numpy as np

    sample = sizes[:: max(1, len(sizes) // _SAMPLE)]
    expected = len(sample) * count / len(sizes)
    rank = int(expected + 4 * expected**0.5) + 4
    if rank < len(sample):
        least = np.partition(sample, len(sample) - rank)[len(sample) - rank]
        places = np.flatnonzero(sizes >= least)
        if len(places) >= count:
            return places
    return np.arange(len(sizes))
