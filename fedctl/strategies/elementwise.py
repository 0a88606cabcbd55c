"""Arithmetic on corresponding elements of many tensors, a chunk at a time, in a wider type than theirs.

What the strategies share. Memory is the one tensor that comes out and a few chunks, whatever the number of tensors.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fedctl.header import TensorSpec
from fedctl.strategies import Contribution

CHUNK = 1 << 15  # elements: a chunk in the wide type stays in the cache, and torch handles it on one thread

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
