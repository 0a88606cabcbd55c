"""Tensors as a file that travels: written by a pipeline on one side, read by the same one on the other.

Both sides have the `base` that tensors are set against, and know by it what has to come. A file is written and read
tensor by tensor, in one order, so that beside what is compressed one tensor is in memory. What was lost on the way is
computed again where it is wanted, from the seed, and is not held meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fedctl.codecs.pipeline import Pipeline, blank_like, is_statistic, seed_of
from fedctl.codecs.zstd import Unpacking
from fedctl.errors import FedctlError, ModelError
from fedctl.header import TensorSpec
from fedctl.records import Blob
from fedctl.weights import Lazy, Weights, joined, part, save, spec_of

if TYPE_CHECKING:
    from torch import Tensor

Spec = Mapping[str, TensorSpec]

PACKED, BESIDE = "packed", "//"
"""The only tensor of a file that is one stream; and what stands between a tensor's name and the number of a part."""
_RUN = 1 << 15  # elements: they stay in the cache, and torch handles them on one thread
_BOTH = "beside"
"""The free text of a file that may have the tensors of `beside` too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """Tensors on their way out.

    `base` has what the other side knows, by names of tensors, and `residual` what earlier ones failed to bring over.
    Floating tensors whose change is less than `least` times the norm of their base stay here, and count as such.
    """

    pipeline: Pipeline
    tensors: Mapping[str, Tensor]
    base: Mapping[str, Tensor]
    residual: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0
    least: float = 0.0
    _sent: dict[str, bool] = field(default_factory=dict, init=False, repr=False)
    """Which of those that may stay here travel, as far as it was asked: to tell, whole tensors are read."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", part(self.tensors, self.tensors))  # what they are is looked up once

    def save(self, path: Path, expected: Spec, beside: Spec | None = None) -> Blob:
        """Write the file; the reader expects all tensors of `expected`, and perhaps some of `beside`.

        Raises ModelError for a tensor that no file can hold, and for one that the reader does not expect.
        """
        known, spec = {**expected, **(beside or {})}, spec_of(self.tensors)
        if strange := next((name for name in sorted(spec) if spec[name] != known.get(name)), None):
            raise ModelError(f"tensor `{strange}` is {spec[strange]}, the model has {known.get(strange, 'none such')}")
        order = in_order(known)
        sent = [name for name in order if name in self.tensors and self._is_sent(name)]
        packing = self.pipeline.packing
        content = {PACKED: packing.pack(self._stream(order, sent))} if packing else self._parts(sent)
        return save(path, content, {_BOTH: "1"} if beside else None)

    @property
    def lost(self) -> Lazy:
        """What did not come over, by names of tensors: the `residual` of what is sent next."""
        spec = spec_of(self.tensors)
        kept = {name: one for name, one in spec.items() if self.pipeline.is_narrowed(name, one) or self._may_wait(name)}
        return Lazy({name: self.pipeline.wide(one) for name, one in kept.items()}, self._lost)

    def _lost(self, name: str) -> Tensor:
        import torch

        if not self._is_sent(name):
            return self.pipeline.change(self.tensors[name], self.base[name], self.residual.get(name))
        base, residual = self.base.get(name), self.residual.get(name)
        spec, seed = spec_of(self.tensors)[name], seed_of(self.seed, name)
        # In the type of the model: what a narrow one rounds away on the other side has not come over either.
        came = self.pipeline.target(self.pipeline.decode(name, self._encoded(name), spec, base, seed), base, None)
        target = self.pipeline.target(self.tensors[name], base, residual)
        return torch.sub(target, came, out=blank_like(target))

    def _may_wait(self, name: str) -> bool:
        spec = spec_of(self.tensors)[name]
        has_changes = spec.is_floating and spec.count > 0
        return self.least > 0 and has_changes and name in self.base and not is_statistic(name)

    def _is_sent(self, name: str) -> bool:
        if not self._may_wait(name):
            return True
        if name not in self._sent:
            base = self.base[name]
            change = self.pipeline.change(self.tensors[name], base, self.residual.get(name))
            # What is not finite goes, and is refused there.
            self._sent[name] = not _norm(change) < self.least * _norm(base)
        return self._sent[name]

    def _encoded(self, name: str) -> Sequence[Tensor]:
        spec = spec_of(self.tensors)[name]
        if self.pipeline.is_narrowed(name, spec):
            target = self.pipeline.target(self.tensors[name], self.base.get(name), self.residual.get(name))
            return self.pipeline.narrowed(target, seed_of(self.seed, name))
        tensor = self.tensors[name]
        if name in self.residual:
            tensor = self.pipeline.change(tensor, None, self.residual[name]).to(tensor.dtype)
        return (self.pipeline.kept(tensor, self.base.get(name)),)

    def _stream(self, order: Sequence[str], sent: Sequence[str]) -> Iterator[Tensor]:
        """Which of the tensors come, and then their parts."""
        import torch

        come = set(sent)
        yield torch.tensor([name in come for name in order], dtype=torch.uint8)
        for name in sent:
            yield from self._encoded(name)

    def _parts(self, sent: Iterable[str]) -> Mapping[str, Tensor]:
        """Each part by its name in the file; those of what is narrowed are small, and are made at once."""
        spec = spec_of(self.tensors)
        layouts = {name: self.pipeline.layout(name, spec[name], has_base=name in self.base) for name in sent}
        exact = [name for name in layouts if not self.pipeline.is_narrowed(name, spec[name])]
        narrow = {
            _part_name(name, number, len(layout)): one
            for name, layout in layouts.items()
            if name not in exact
            for number, one in enumerate(self._encoded(name))
        }
        return joined(narrow, Lazy({name: layouts[name][0] for name in exact}, lambda name: self._encoded(name)[0]))


def read(
    path: Path,
    pipeline: Pipeline,
    expected: Spec,
    base: Mapping[str, Tensor],
    *,
    seed: int,
    beside: Spec | None = None,
    least: float = 0.0,
    what: str | None = None,
) -> Lazy:
    """The tensors of a file that `Outgoing.save` wrote, to be asked for once each and `in_order`.

    With `least` a tensor that did not come is as in `base`. Raises ModelError, also when a tensor is asked for, for a
    file that is not of such tensors; `what` names it in the message, else its path does.
    """
    wire = Weights.open(path, what=what)
    both = {**expected, **(beside or {})} if _BOTH in wire.metadata else dict(expected)
    layouts = {name: pipeline.layout(name, spec, has_base=name in base) for name, spec in both.items()}
    with _naming(what or str(path)):
        source: _Source = _Stream(wire, pipeline, layouts, both) if pipeline.packing else _Apart(wire, layouts)
    missing = [name for name in expected if name not in source.come]
    if missing and not least:
        raise ModelError(f"{what or path}: tensor `{missing[0]}` is missing")

    def compute(name: str) -> Tensor:
        if name not in source.come:
            return base[name]
        with _naming(what or str(path)):
            parts = source.take(name)
            try:
                return pipeline.decode(name, parts, both[name], base.get(name), seed_of(seed, name))
            except (FedctlError, OSError):
                raise
            except Exception as error:  # a user's own codec may raise anything
                raise ModelError(f"tensor `{name}` cannot be decoded: {type(error).__name__}: {error}") from error

    return Lazy({name: spec for name, spec in both.items() if name in source.come or name in expected}, compute)


def in_order(spec: Spec) -> list[str]:
    """The names of tensors in the order in which `save` asks for them."""
    return sorted(spec, key=lambda name: (-spec[name].item_size, name))


class _Source(Protocol):
    """The parts of the tensors that a file has; `come` are the names of these."""

    come: set[str]

    def take(self, name: str) -> Sequence[Tensor]: ...


class _Apart:
    """A file in which every part is a tensor."""

    def __init__(self, wire: Weights, layouts: Mapping[str, Sequence[TensorSpec]]) -> None:
        self.come = {name for name, layout in layouts.items() if _part_name(name, 0, len(layout)) in wire.spec}
        self._wire = wire
        self._names = {
            name: [_part_name(name, number, len(layouts[name])) for number in range(len(layouts[name]))]
            for name in self.come
        }
        known = {each: one for name in self.come for each, one in zip(self._names[name], layouts[name], strict=True)}
        for name in sorted(known.keys() | wire.spec.keys()):
            if known.get(name) != wire.spec.get(name):
                found, wanted = (str(each.get(name, "not there")) for each in (wire.spec, known))
                raise ModelError(f"`{name}` is {found}, where it should be {wanted}")

    def take(self, name: str) -> Sequence[Tensor]:
        return [self._wire[each] for each in self._names[name]]


class _Stream:
    """A file of one stream, which is read on as its tensors are asked for."""

    def __init__(
        self, wire: Weights, pipeline: Pipeline, layouts: Mapping[str, Sequence[TensorSpec]], spec: Spec
    ) -> None:
        if pipeline.packing is None or set(wire.spec) != {PACKED} or wire.spec[PACKED].dtype != "uint8":
            raise ModelError("not one stream of bytes, as `zstd` makes")
        order = in_order(spec)
        self._stream: Unpacking = pipeline.packing.unpack(wire[PACKED])
        self._layouts = layouts
        flags = self._stream.take(TensorSpec("uint8", (len(order),))).tolist()
        self._left = [name for name, flag in zip(order, flags, strict=True) if flag]
        self.come = set(self._left)

    def take(self, name: str) -> Sequence[Tensor]:
        if name != self._left[0]:
            raise AssertionError(f"{name} was asked for before {self._left[0]}")
        self._left.pop(0)
        parts = [self._stream.take(one) for one in self._layouts[name]]
        if not self._left:
            self._stream.finish()
        return parts


def _norm(tensor: Tensor) -> float:
    """In double precision, of some values at a time."""
    import torch

    runs = torch.split(tensor.detach().cpu().reshape(-1), _RUN)
    wide = (run.float() if run.itemsize == 1 else run for run in runs)
    return math.hypot(*(float(torch.linalg.vector_norm(run, dtype=torch.float64)) for run in wide))


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Have a ModelError say in which file it was."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{what}: {error.message}") from error


def _part_name(name: str, number: int, count: int) -> str:
    return name if count == 1 else f"{name}{BESIDE}{number}"
