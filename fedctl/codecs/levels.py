"""Floats as whole numbers of steps: a scale for each channel, levels rounded at random, and back.

Owns what `int8` and `int4` share. A channel is a row of a tensor's first dimension, or as many rows as make `LEAST`
elements; of a vector it is the whole. Elements are worked on in runs that stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fedctl.header import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

LEAST = 256
"""Elements to a scale, at least: a scale of 4 bytes is then 1.6 % of their bytes in `int8`, 3.1 % in `int4`."""
RUN = 1 << 15
"""Elements at a time, of which no more than three buffers are in use."""

_BITS = 16  # of chance an element: with them a mean over many seeds is right to a thousandth of a step
_TINIEST = 2.0**-100  # of a scale; its inverse, times 2**16, is still a float32


def check_rounding(rounding: str) -> None:
    """Refuse, with the ValueError that options take, what is no way to round."""
    if rounding not in {"stochastic", "nearest"}:
        raise ValueError(f"rounding should be stochastic or nearest, not {rounding}")


def channel(spec: TensorSpec) -> int:
    """The number of elements that share a scale; the last channel of a tensor may have fewer."""
    if len(spec.shape) < 2:
        return spec.count
    row = spec.count // spec.shape[0]
    return min(spec.count, row * -(-LEAST // row))


def scales_of(spec: TensorSpec) -> TensorSpec:
    """What the scales of such a tensor are."""
    return TensorSpec(spec.dtype, (-(-spec.count // channel(spec)),))


def to_levels(tensor: Tensor, *, most: int, rounding: str, seed: int) -> tuple[NDArray[np.int8], Tensor]:
    """Levels from -`most` to `most`, in a row, and the scales that they are steps of: max |x| / `most` of a channel.

    The tensor is of float32 or float64. A channel with a value that is not finite gets a scale that is not. One whose
    scale would be below 2**-100 is all zeros.
    """
    import numpy as np
    import torch

    size = channel(TensorSpec.of(tensor))
    values: NDArray[Any] = tensor.contiguous().view(-1).numpy()
    scales = _scales(values, size, most)
    is_finite = np.isfinite(scales)
    if not is_finite.all():
        values = np.where(np.isfinite(values), values, 0).astype(values.dtype)
    # No float32 comes out more than 2**-17 above the last level, so with what chance adds it stays below the next one.
    finest = 2.0**_BITS if rounding == "stochastic" else 1.0
    factors = np.zeros_like(scales)
    np.divide(finest, scales, out=factors, where=is_finite & (scales > 0))
    levels = np.empty(len(values), np.int8)
    buffer = np.empty(RUN, values.dtype)
    chance = np.random.SFC64(seed)
    for part, channels in _runs(len(values), size):
        steps = buffer[: part.stop - part.start]
        rows = (channels.stop - channels.start, -1)
        np.multiply(values[part].reshape(rows), factors[channels, None], out=steps.reshape(rows))
        if rounding == "stochastic":
            steps += chance.random_raw(-(-len(steps) // 4)).view(np.uint16)[: len(steps)]
            steps *= 2.0**-_BITS
            np.floor(steps, out=steps)
        else:
            np.rint(steps, out=steps)
        np.copyto(levels[part], steps, casting="unsafe")
    return levels, torch.from_numpy(scales)


def from_levels(levels: NDArray[np.int8], scales: Tensor, spec: TensorSpec) -> Tensor:
    """Each level times its channel's scale, one rounding each: the same bits on every machine."""
    import numpy as np
    import torch

    size, steps = channel(spec), scales.numpy()
    values = np.empty(len(levels), steps.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        for part, channels in _runs(len(levels), size):
            run = values[part]
            np.copyto(run, levels[part])
            rows = run.reshape(channels.stop - channels.start, -1)
            rows *= steps[channels, None]
    return torch.from_numpy(values).view(spec.shape)


def _scales(values: NDArray[Any], size: int, most: int) -> NDArray[Any]:
    import numpy as np

    largest = np.zeros(-(-len(values) // size), values.dtype)
    buffer = np.empty(RUN, values.dtype)
    for part, channels in _runs(len(values), size):
        found = np.abs(values[part], out=buffer[: part.stop - part.start])
        rows = found.reshape(channels.stop - channels.start, -1)
        np.maximum(largest[channels], rows.max(axis=1), out=largest[channels])
    scales = largest / most
    scales[scales < _TINIEST] = 0
    number = values.dtype.type
    top = np.nextafter(np.finfo(number).max / number(most), number(0))
    return np.where(np.isfinite(scales), np.minimum(scales, top), scales)


def _runs(count: int, size: int) -> Iterator[tuple[slice, slice]]:
    """What to work on at a time, as elements and as channels: whole channels, or a part of one."""
    several = RUN // size
    whole = count - count % size if several else 0
    for start in range(0, whole, several * size or 1):
        stop = min(start + several * size, whole)
        yield slice(start, stop), slice(start // size, stop // size)
    for first in range(whole, count, size):
        last = min(first + size, count)
        for start in range(first, last, RUN):
            yield slice(start, min(start + RUN, last)), slice(first // size, first // size + 1)
