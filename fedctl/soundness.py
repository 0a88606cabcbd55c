"""What an update must be to become part of a model: like it in every tensor, finite, and not absurdly far from it.

Reads tensor by tensor, so that one is in memory, and each value once.
"""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fedctl.errors import ModelError
from fedctl.header import TensorSpec
from fedctl.weights import CONTROL, spec_of, split

_CHUNK = 1 << 15  # elements: as many as torch handles on one thread, and they stay in the cache
_TINY = 2.0**-540  # no sum of squares of doubles that were made so much smaller is beyond a double


def check_update(
    update: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
    *,
    what: str = "update",
    against: str = "the model",
    farthest: float | None = None,
    controls: bool = False,
) -> None:
    """Refuse an update that is not a model like `model`: same names, shapes and dtypes, every floating value finite.

    With `farthest`, the norm of update - model may be that many times the norm of the model plus 1, over all floating
    values. With `controls`, `control/NAME` may be there beside each floating tensor NAME of the model, of its shape and
    dtype, and the norm of all of these may be as large. `what` and `against` name the two in the message. Raises
    ModelError naming the tensor.
    """
    weights, beside = split(update) if controls else (update, {})
    check_spec(spec_of(weights), spec_of(model), what=what, against=against)
    check_controls(spec_of(beside), spec_of(model), what=what, against=against)
    if farthest is None:
        for name in update:
            check_finite(name, update[name], what=what)
        return
    changes: dict[str, float] = {}
    norm = 0.0
    for name in weights:
        changes[name], of_model = _apart(name, weights[name], model[name], what=what)
        norm = math.hypot(norm, of_model)
    change = math.hypot(*changes.values())
    limit = f"`limits: {{norm: {farthest:g}}}` allows: it has diverged; tensor"
    if change / farthest > norm + 1:
        raise ModelError(
            f"{what} lies {change:.3g} from {against}, whose norm is {norm:.3g}, further than {limit} "
            f"`{max(changes, key=changes.__getitem__)}` moved most"
        )
    sizes = {CONTROL + name: _size(CONTROL + name, beside[name], what=what) for name in beside}
    if (size := math.hypot(*sizes.values())) / farthest > norm + 1:
        raise ModelError(
            f"{what} has controls of norm {size:.3g}, and {against} one of {norm:.3g}: more than {limit} "
            f"`{max(sizes, key=sizes.__getitem__)}` is the largest"
        )


def check_spec(
    found: Mapping[str, TensorSpec], wanted: Mapping[str, TensorSpec], *, what: str, against: str = "the model"
) -> None:
    """Refuse other names, shapes or dtypes than those wanted; reads no tensor. Raises ModelError naming the tensor."""
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            raise ModelError(f"{what}: tensor `{name}` is missing, {against} has it")
        if name not in wanted:
            raise ModelError(f"{what}: unexpected tensor `{name}`, {against} has none of that name")
        if found[name] != wanted[name]:
            raise ModelError(f"{what}: tensor `{name}` is {found[name]}, {against} has {wanted[name]}")


def check_controls(
    found: Mapping[str, TensorSpec], wanted: Mapping[str, TensorSpec], *, what: str, against: str = "the model"
) -> None:
    """Refuse controls, by the names of the model's tensors, that are not like these; reads no tensor, as `check_spec`.

    Raises ModelError naming the tensor.
    """
    for name in sorted(found):
        if name not in wanted:
            raise ModelError(f"{what}: unexpected tensor `{CONTROL}{name}`, {against} has no `{name}`")
        if not wanted[name].is_inexact:
            raise ModelError(f"{what}: unexpected tensor `{CONTROL}{name}`, `{name}` is {wanted[name]}")
        if found[name] != wanted[name]:
            raise ModelError(f"{what}: tensor `{CONTROL}{name}` is {found[name]}, {against} has {wanted[name]}")


def check_finite(name: str, tensor: Tensor, *, what: str) -> None:
    """Refuse NaN and infinite values in a floating or complex tensor, in bounded memory; raises ModelError."""
    for chunk in _chunks(tensor):
        low, high = torch.aminmax(chunk.float() if chunk.itemsize == 1 else chunk)
        if not (low.isfinite() and high.isfinite()):
            raise ModelError(f"{what}: tensor `{name}` has NaN or infinite values")


def _apart(name: str, tensor: Tensor, base: Tensor, *, what: str) -> tuple[float, float]:
    """The norms of `tensor` - `base` and of `base`, in one pass; raises ModelError for what is not finite."""
    change = norm = 0.0
    for ours, theirs in zip(_chunks(tensor), _chunks(base), strict=True):
        found, wanted = ours.double(), theirs.double()
        moved = _norm(found, wanted)
        if not math.isfinite(moved):
            check_finite(name, ours, what=what)
        change, norm = math.hypot(change, moved), math.hypot(norm, _norm(wanted))
    return change, norm


def _size(name: str, tensor: Tensor, *, what: str) -> float:
    """The norm of the tensor; raises ModelError for what is not finite."""
    size = 0.0
    for chunk in _chunks(tensor):
        found = _norm(chunk.double())
        if not math.isfinite(found):
            check_finite(name, chunk, what=what)
        size = math.hypot(size, found)
    return size


def _norm(values: Tensor, less: Tensor | float = 0.0) -> float:
    """The norm of `values` - `less`, also where the squares are beyond a double."""
    norm = float(torch.linalg.vector_norm(values - less))
    return norm if math.isfinite(norm) else float(torch.linalg.vector_norm(values * _TINY - less * _TINY)) / _TINY


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """The values of a floating or complex tensor, some at a time; of any other none."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.is_floating_point():
        values = tensor.detach().reshape(-1)
        for start in range(0, len(values), _CHUNK):
            yield values[start : start + _CHUNK]
