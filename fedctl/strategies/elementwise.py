"""Arithmetic on corresponding elements of many tensors, a chunk at a time, in a wider type than theirs.

What the strategies share, and where they meet torch: their own modules import this one when they aggregate, so that a
strategy is named, built and checked without it. Memory is the one tensor that comes out and a few chunks, whatever the
number of tensors.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedctl.header import TensorSpec
from fedctl.strategies import Contribution

CHUNK = 1 << 15  # elements: a chunk in the wide type stays in the cache, and torch handles it on one thread
_MOST_SORTED = 1 << 20  # values sorted at once

_WIDE = {
    torch.float64: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex128: torch.complex128,
}


def in_name_order(updates: Sequence[Contribution]) -> list[Contribution]:
    """The contributions in the order in which sums run, so that the order of arrival changes no bit."""
    return sorted(updates, key=lambda update: update.name)


def is_averaged(spec: TensorSpec) -> bool:
    """Whether means of such a tensor have a meaning: floating and complex ones, neither integers nor booleans."""
    return spec.dtype.startswith(("float", "bfloat", "complex"))


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in: double precision for single and double, single precision for all narrower ones."""
    return _WIDE.get(dtype, torch.float32)


def in_chunks(
    rule: Callable[[Sequence[Tensor]], Tensor], tensors: Sequence[Tensor], *, dtype: torch.dtype, chunk: int = CHUNK
) -> Tensor:
    """One tensor, in `dtype`, of the tensors' common shape, whose every chunk is `rule` of their chunks.

    `rule` gets flat views of at most `chunk` elements, which it must not change, and returns as many elements.
    """
    result = torch.empty(tensors[0].shape, dtype=dtype)
    flat, parts = result.view(-1), [tensor.reshape(-1) for tensor in tensors]
    for start in range(0, len(flat), chunk):
        stop = start + chunk
        flat[start:stop].copy_(rule([part[start:stop] for part in parts]))
    return result


def largest(tensors: Sequence[Tensor]) -> Tensor:
    """The largest of each element: how integers (counters) and booleans (true if any is) are combined."""
    result = tensors[0].clone()
    for tensor in tensors[1:]:
        np.maximum(result.numpy(), tensor.numpy(), out=result.numpy())  # torch itself lacks it for unsigned types
    return result


def scaled(weights: Sequence[float]) -> list[float]:
    """The weights times one power of two, which is exact, so that their sum lies in [0.5, 1) and no product overflows.

    Equal weights become powers of two themselves, which keeps the mean of a single double-precision update exact.
    """
    if min(weights) == max(weights):
        weights = [1.0] * len(weights)
    _, exponent = math.frexp(math.fsum(weights))
    return [math.ldexp(weight, -exponent) for weight in weights]


def mean_of(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean of tensors of one shape and dtype, in that dtype; of integers and booleans the largest."""
    dtype = tensors[0].dtype
    if not (dtype.is_floating_point or dtype.is_complex):
        return largest(tensors)
    return in_chunks(partial(mean_of_chunks, weights=weights), tensors, dtype=dtype)


def mean_of_chunks(chunks: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean of flat tensors, in the wider type; `weights` as `scaled` gives them."""
    dtype = wide(chunks[0].dtype)
    total = chunks[0].to(dtype) * weights[0]
    for chunk, weight in zip(chunks[1:], weights[1:], strict=True):
        total.add_(chunk.to(dtype), alpha=weight)
    return total.div_(math.fsum(weights))


def median_of(tensors: Sequence[Tensor]) -> Tensor:
    """The coordinate-wise median of tensors of one shape and dtype, in that dtype."""
    dtype = tensors[0].dtype
    if dtype.is_complex:
        return torch.view_as_complex(median_of([torch.view_as_real(tensor) for tensor in tensors]))
    if not dtype.is_floating_point:
        return largest(tensors)
    return in_chunks(_median, tensors, dtype=dtype, chunk=max(1, min(CHUNK, _MOST_SORTED // len(tensors))))


def _median(chunks: Sequence[Tensor]) -> Tensor:
    dtype, count = chunks[0].dtype, len(chunks)
    columns = torch.stack([chunk.to(dtype if dtype.itemsize >= 4 else torch.float32) for chunk in chunks], dim=1)
    columns.numpy().sort(axis=1)  # in place, and several times as fast as torch's own
    if count % 2:
        return columns[:, count // 2]
    lower, upper = columns[:, count // 2 - 1].to(wide(dtype)), columns[:, count // 2].to(wide(dtype))
    return lower / 2 + upper / 2
