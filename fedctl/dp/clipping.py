"""Updates of bounded length: the norm of what an update changed, and the same update cut down to a norm.

Over all floating and complex values together, in double precision, a chunk at a time. Integers and booleans have no
length: what becomes of them is for others to say.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fedctl.errors import ModelError
from fedctl.weights import Lazy, spec_of

_CHUNK = 1 << 15  # elements: they stay in the cache


def norm_of(update: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """The L2 norm of update - start over every floating tensor of the update; the order of names changes no bit.

    Raises ModelError for a value that is not finite: it has no length to be cut down to.
    """
    norm = 0.0
    for name, spec in sorted(spec_of(update).items()):
        if spec.is_inexact:
            for ours, theirs in zip(_chunks(update[name]), _chunks(start[name]), strict=True):
                norm = math.hypot(norm, float(torch.linalg.vector_norm(ours.double() - theirs.double())))
    if not math.isfinite(norm):
        raise ModelError("the update has NaN or infinite values, or such a length: there is nothing to clip it to")
    return norm


def factor(norm: float, most: float) -> float:
    """What a difference of that norm is to be multiplied with to have at most the norm `most`; 1 where it has."""
    return min(1.0, most / norm) if norm else 1.0


def clipped(update: Mapping[str, Tensor], start: Mapping[str, Tensor], most: float) -> Mapping[str, Tensor]:
    """The update with its floating values on the way from `start` to themselves, no further than `most` in all.

    Integers and booleans stay as they are. Floating differences are rounded to the update's dtypes at the end.
    """
    share = factor(norm_of(update, start), most)
    if share == 1.0:
        return update
    spec = spec_of(update)

    def tensor(name: str) -> Tensor:
        return _moved(update[name], start[name], share) if spec[name].is_inexact else update[name]

    return Lazy(spec, tensor)


def _moved(update: Tensor, start: Tensor, share: float) -> Tensor:
    result = torch.empty_like(update)
    for out, ours, theirs in zip(_chunks(result), _chunks(update), _chunks(start), strict=True):
        began = theirs.double()
        out.copy_(began.add(ours.double() - began, alpha=share))
    return result


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    values = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().reshape(-1)
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]
