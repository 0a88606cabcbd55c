"""Sums in the order of arrival, and of them a mean that has the bits of `mean` in the order of names.

`Fold` takes up a round's updates one by one while others are still on their way, so that little is left to do when the
last is there. Its sums lie in a file that has no name: they are no memory of the process, and a crash leaves nothing.
"""

import os
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedctl.errors import ModelError
from fedctl.header import TensorSpec
from fedctl.strategies import Contribution
from fedctl.strategies.elementwise import (
    CHUNK,
    Values,
    in_a_row,
    in_name_order,
    is_averaged,
    largest,
    mean,
    over_chunks,
    scaled,
    values_of,
    wide,
)
from fedctl.weights import Lazy, spec_of

LARGEST_WEIGHT = (1 << 29) - 1
"""So large a weight times a single-precision value, of 24 bits, still is a double, of 53 bits."""
MOST_UPDATES = 1 << 16

_WEIGHT_BITS = {"float32": 29, "bfloat16": 16, "float16": 13}
"""The bits that a weight may have for its product with such a value to be exact where `mean` computes it."""
_BITS = {"float32": torch.int32, "bfloat16": torch.int16, "float16": torch.int16}
_SMALL = 2.0**-100  # from there on no product of a bfloat16 with a scaled weight loses bits below single precision
_MANY = 8  # where an eighth of a chunk is to be computed anew, all of it is done sooner


class Fold:
    """The weighted sum of updates that are alike, in double precision, and the largest of each chunk of their values.

    A sum depends on the order in which it ran, but only in its last bits. `model` says of each mean how far `mean`,
    over the same updates in the order of names, may be from it (`_apart`); where both ends of that span round to the
    same value of the tensor's dtype, so does what `mean` gives, since rounding is monotone. The few others, zeros of
    either sign among them, are computed anew by `mean`. So the order of arrival changes no bit.
    """

    def __init__(self, folder: Path, spec: Mapping[str, TensorSpec]) -> None:
        """Nothing is summed yet; the file, of `size(spec)` bytes, is made in `folder`. Raises OSError."""
        self._spec = spec
        self._weights: dict[str, int] = {}
        self._starts: dict[str, int] = {}
        count = 0
        for name in _folded(spec):
            self._starts[name], count = count, count + spec[name].count
        self._peaks = {name: [0.0] * -(-spec[name].count // CHUNK) for name in self._starts}
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".fold.tmp-") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, size(spec)))  # a disk that is full says so here
            self._sums = torch.from_file(file.name, shared=True, size=count, dtype=torch.float64)

    def add(self, name: str, weights: Mapping[str, Tensor], weight: int) -> None:
        """Take up one more update; raises ModelError for one that is not like the others, or has another weight."""
        if spec_of(weights) != self._spec or name in self._weights or not 0 < weight <= LARGEST_WEIGHT:
            raise ModelError(f"the update of {name} cannot be folded")
        values = torch.empty(CHUNK, dtype=torch.float64)
        for tensor, start in self._starts.items():
            row, peaks = values_of(weights, tensor), self._peaks[tensor]
            for number, at in enumerate(range(0, self._spec[tensor].count, CHUNK)):
                part = slice(at, min(at + CHUNK, self._spec[tensor].count))
                found = values[: part.stop - part.start].copy_(row[part])
                peaks[number] = max(peaks[number], _peak(found))
                self._sums[start + part.start : start + part.stop].add_(found, alpha=weight)
        self._weights[name] = weight

    def model(self, updates: Sequence[Contribution]) -> Lazy | None:
        """The mean of the updates, of those that were not taken up too; None where it takes `mean` from the start.

        That is so where one was taken up that is not among them, or a weight is 0 or large.
        """
        ordered = in_name_order(updates)
        found = {update.name: update.weight for update in ordered}
        if (
            not self._weights.items() <= found.items()
            or len(ordered) > MOST_UPDATES
            or not all(0 < weight <= LARGEST_WEIGHT and weight == int(weight) for weight in found.values())
        ):
            return None

        def tensor(name: str) -> Tensor:
            spec = self._spec[name]
            if not is_averaged(spec):
                return largest([update.weights[name] for update in ordered])
            return self._mean(name, ordered)

        return Lazy(self._spec, tensor)

    def _mean(self, name: str, ordered: Sequence[Contribution]) -> Tensor:
        spec = self._spec[name]
        dtype: torch.dtype = getattr(torch, spec.dtype)
        result = torch.empty(spec.shape, dtype=dtype)
        values, rows = in_a_row(result), [values_of(update.weights, name) for update in ordered]
        weights = [int(update.weight) for update in ordered]
        shares = scaled(weights)
        rest = [
            (row, weight)
            for row, weight, update in zip(rows, weights, ordered, strict=True)
            if update.name not in self._weights
        ]
        is_exact = name in self._starts and (
            min(weights) == max(weights) or max(weights).bit_length() <= _WEIGHT_BITS[spec.dtype]
        )
        anew = _Anew(rows, shares)

        def work(part: slice) -> None:
            target = values[part]
            unsure = self._rounded(name, part, rest, (len(rows), sum(weights)), target) if is_exact else None
            if unsure is None or not anew.some(part, unsure, target):
                target.copy_(anew.all(part))

        deque(over_chunks(work, len(values)), maxlen=0)
        return result

    def _rounded(
        self, name: str, part: slice, rest: Sequence[tuple[Values, int]], over: tuple[int, int], target: Tensor
    ) -> Tensor:
        """Put the means of a chunk, over so many updates of that weight, into `target`; where they are not certain."""
        start, (count, total) = self._starts[name], over
        sums = self._sums[start + part.start : start + part.stop].clone()
        peak, found = self._peaks[name][part.start // CHUNK], torch.empty_like(sums)
        for row, weight in rest:
            found.copy_(row[part])
            peak = max(peak, _peak(found))
            sums.add_(found, alpha=weight)
        sums.div_(total)
        apart = _apart(count, peak, target.dtype)
        bits = _BITS[self._spec[name].dtype]
        low, high = ((sums + side).float().to(target.dtype) for side in (-apart, apart))
        target.copy_(low)
        return (low.view(bits) != high.view(bits)).nonzero().reshape(-1)


class _Anew:
    """What `mean` gives of the updates in the order of names."""

    def __init__(self, rows: Sequence[Values], shares: Sequence[float]) -> None:
        self._rows, self._shares = rows, shares

    def all(self, part: slice) -> Tensor:
        """The means of a chunk."""
        return mean([row[part] for row in self._rows], self._shares)

    def some(self, part: slice, at: Tensor, target: Tensor) -> bool:
        """Put the means at these places of a chunk into `target`; False where the whole chunk is to be taken.

        Each product in them is exact, so that no bit depends on whether a processor rounds it before it is added, which
        may differ between the places of a chunk.
        """
        if len(at) * _MANY > len(target):
            return False
        if len(at):
            chunks = [row[part][at] for row in self._rows]
            if target.dtype == torch.bfloat16 and any(_is_small(chunk) for chunk in chunks):
                return False
            target[at] = mean(chunks, self._shares).to(target.dtype)
        return True


def size(spec: Mapping[str, TensorSpec]) -> int:
    """The bytes of the file that a fold of such updates takes."""
    return 8 * sum(spec[name].count for name in _folded(spec))


def _folded(spec: Mapping[str, TensorSpec]) -> list[str]:
    """The tensors whose sums are kept; of the others means are taken when all updates are there."""
    return [name for name in spec if spec[name].dtype in _WEIGHT_BITS]


def _peak(values: Tensor) -> float:
    """The largest absolute value."""
    low, high = torch.aminmax(values)
    return max(-float(low), float(high))


def _is_small(values: Tensor) -> bool:
    """Whether a value is so near to 0, without being 0, that a product with it may not be exact."""
    sizes = values.abs()
    return bool(((sizes > 0) & (sizes < _SMALL)).any())


def _apart(updates: int, peak: float, dtype: torch.dtype) -> float:
    """A bound on how far the mean of a fold is from what `mean` gives, of N updates whose values are at most `peak`.

    Let u = 2**-53, v the unit roundoff of the type in which `mean` computes (u, or 2**-24), M the peak, W the sum of
    weights; the true mean is at most M. The products w x are exact in both: 24 + 29 bits make a double's 53, and
    `_WEIGHT_BITS` says as much of the narrower types. A sum of N terms in any order is off by at most
    g(N - 1) sum(w |x|) <= g(N - 1) W M, with g(n) = n v / (1 - n v) (Higham: Accuracy and Stability of Numerical
    Algorithms, 2nd ed., sec. 4.2). W rounded to that type, its reciprocal and a product by that are three roundings at
    most, so that the quotient is off by at most g(N + 2) M, which is below 1.01 (N + 2) v M as N v < 0.005. The two
    means, each so far from the true one, are at most 2.02 (N + 2) v M apart. The rest of 3 (N + 4) v M is more than
    8 v M, and the roundings of this bound and of the ends of the span are below 4 u M.

    Single precision also loses what lies below its denormals: 2**-150 a product and a quotient, which a W of at least
    1/2, as `scaled` makes it, at most doubles. Doubles lose nothing so: their terms are multiples of 2**-149.
    """
    computed = wide(dtype)
    below = 0.0 if computed == torch.float64 else (updates + 4) * 2.0**-147
    return 3 * (updates + 4) * torch.finfo(computed).eps / 2 * peak + below
