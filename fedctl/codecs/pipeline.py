"""Codecs one after the other, as `codec: [delta, topk: {keep: 0.01}, int8, zstd]` names them, on one tensor.

A tensor becomes its parts: what its last codec left of its values, and what each codec needs beside them to decode.
What the parts of a tensor are follows from its shape and dtype alone, so a reader knows what has to come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from fedctl.codecs import ORDER, TensorCodec, build
from fedctl.codecs.delta import Delta, bits_apart, bits_joined
from fedctl.codecs.zstd import Zstd
from fedctl.errors import ConfigError
from fedctl.header import TensorSpec
from fedctl.records import Blob

if TYPE_CHECKING:
    from torch import Tensor

STATISTICS = ("*running_mean", "*running_var")
"""BatchNorm's: few values, of which a variance below zero would be the end; they are never made less exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """At most one codec of each step. Without any, tensors travel as they are."""

    delta: Delta | None = None
    selection: TensorCodec | None = None
    precision: TensorCodec | None = None
    packing: Zstd | None = None

    @classmethod
    def of(cls, stages: Sequence[Mapping[str, Any]]) -> Pipeline:
        """Of codecs with options that were checked before; raises ConfigError for an order that makes no sense."""
        return cls.joined([(str(stage["name"]), build(stage)) for stage in stages])

    @classmethod
    def joined(cls, codecs: Sequence[tuple[str, Any]]) -> Pipeline:
        """Of codecs and their names; raises ConfigError for an order that makes no sense."""
        found: dict[str, tuple[str, Any]] = {}
        for name, codec in codecs:
            step = getattr(codec, "step", None)
            if step not in ORDER:
                raise ConfigError(f"codec: {name} does not say which step it is", hint=f"one of {', '.join(ORDER)}")
            if step in found:
                other = found[step][0]
                raise ConfigError(f"codec: {other} and {name} do the same step", hint="leave one of the two out")
            later = [earlier for kind, (earlier, _) in found.items() if ORDER.index(kind) > ORDER.index(step)]
            if later:
                raise ConfigError(
                    f"codec: {name} should stand before {later[0]}",
                    hint="delta comes first, then topk, randk or powersgd, then bf16, fp16, int8 or int4, then zstd",
                )
            found[step] = (name, codec)
        if "selection" in found and "difference" not in found:
            name = found["selection"][0]
            raise ConfigError(
                f"codec: {name} leaves out most of what it is given, and whole weights would not bear that",
                hint=f"put `delta` before {name}",
            )
        names = {"difference": "delta", "bytes": "packing"}
        return cls(**{names.get(step, step): codec for step, (_, codec) in found.items()})

    @property
    def is_plain(self) -> bool:
        """Whether tensors travel as they are."""
        return not (self.delta or self.selection or self.precision or self.packing)

    def is_coded(self, least: float) -> bool:
        """Whether what travels is more than the tensors: with a `least` change, which of them come is told, too."""
        return not self.is_plain or least > 0

    @property
    def is_lossy(self) -> bool:
        """Whether what comes out may differ from what went in by more than a rounding."""
        return bool(self.selection or self.precision)

    @property
    def exact_everywhere(self) -> bool:
        """Whether every machine decodes the same bits."""
        found = (self.delta, self.selection, self.precision, self.packing)
        return all(getattr(each, "exact_everywhere", False) for each in found if each)

    def is_narrowed(self, name: str, spec: TensorSpec) -> bool:
        """Whether a tensor loses something on the way."""
        return self.is_lossy and spec.is_floating and spec.count > 0 and not is_statistic(name)

    @staticmethod
    def wide(spec: TensorSpec) -> TensorSpec:
        """As what codecs take the values of such a tensor: float32, or float64 where they are that."""
        return TensorSpec("float64" if spec.dtype == "float64" else "float32", spec.shape)

    def layout(self, name: str, spec: TensorSpec, *, has_base: bool) -> tuple[TensorSpec, ...]:
        """What the parts of such a tensor are."""
        if not self.is_narrowed(name, spec):
            return (_whole_numbers(spec) if self._is_subtracted(spec, has_base=has_base) else spec,)
        parts = self.selection.layout(self.wide(spec)) if self.selection else (self.wide(spec),)
        if self.precision is None:
            return parts
        carried = self._carried(parts)
        narrow = [part for one in parts[:carried] for part in self.precision.layout(one)]
        return (*narrow, *parts[carried:])

    def target(self, tensor: Tensor, base: Tensor | None, residual: Tensor | None) -> Tensor:
        """What a tensor should bring over, in the wide type; without `delta` that is itself."""
        return self.change(tensor, base if self.delta else None, residual)

    def change(self, tensor: Tensor, base: Tensor | None, residual: Tensor | None) -> Tensor:
        """How far a tensor lies from its base (None: from zero), with what earlier ones failed to bring over."""
        import torch

        dtype = getattr(torch, self.wide(TensorSpec.of(tensor)).dtype)
        found = tensor.detach().cpu().to(dtype)
        out = blank_like(found)
        if base is not None:
            found = torch.sub(found, base.to(dtype), out=out)
        return found if residual is None else torch.add(found, residual.to(dtype), out=out)

    def narrowed(self, target: Tensor, seed: int) -> tuple[Tensor, ...]:
        """The parts of a target."""
        parts = self.selection.encode(target, seed) if self.selection else (target,)
        if self.precision is None:
            return parts
        carried = self._carried(parts)
        narrow = [
            part
            for number, one in enumerate(parts[:carried], start=1)
            for part in self.precision.encode(one, (seed + number) % 2**63)
        ]
        return (*narrow, *parts[carried:])

    def widened(self, parts: Sequence[Tensor], spec: TensorSpec, seed: int) -> Tensor:
        """What came over of the target of a tensor of that `spec`."""
        whole = self.wide(spec)
        values = list(parts)
        if self.precision:
            between = self.selection.layout(whole) if self.selection else (whole,)
            carried, values = self._carried(between), []
            rest = list(parts)
            for number, one in enumerate(between[:carried], start=1):
                count = len(self.precision.layout(one))
                values.append(self.precision.decode(rest[:count], one, (seed + number) % 2**63))
                rest = rest[count:]
            values += rest
        return self.selection.decode(values, whole, seed) if self.selection else values[0]

    def kept(self, tensor: Tensor, base: Tensor | None) -> Tensor:
        """The one part of a tensor that loses nothing; `base` is what the other side has of it (None: nothing)."""
        spec = TensorSpec.of(tensor)
        if base is not None and self._is_subtracted(spec, has_base=True):
            return bits_apart(tensor, base).view(spec.shape)
        return tensor

    def decode(self, name: str, parts: Sequence[Tensor], spec: TensorSpec, base: Tensor | None, seed: int) -> Tensor:
        """The tensor of that `spec` whose parts these are."""
        import torch

        if self.is_narrowed(name, spec):
            came = self.widened(parts, spec, seed)
            if self.delta and base is not None:
                came = torch.add(base.to(came.dtype), came, out=blank_like(came))
            return came.to(getattr(torch, spec.dtype)).view(spec.shape)
        if base is not None and self._is_subtracted(spec, has_base=True):
            return bits_joined(parts[0].reshape(-1), base)
        return parts[0]

    def _is_subtracted(self, spec: TensorSpec, *, has_base: bool) -> bool:
        """Whether a tensor that loses nothing travels as its exact difference."""
        return bool(self.delta) and has_base and spec.item_size <= 8 and spec.dtype != "bool" and spec.count > 0

    def _carried(self, parts: Sequence[object]) -> int:
        return min(self.selection.carried, len(parts)) if self.selection else 1


PLAIN = Pipeline()
"""Tensors travel as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """How tensors travel: updates `up`, models `down`."""

    up: Pipeline = PLAIN
    down: Pipeline = PLAIN


def seed_of(seed: int, name: str) -> int:
    """The seed of a tensor, below 2**63, from that of its update."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def seed_of_model(previous: Blob) -> int:
    """The seed of a model that travels as its difference to a `previous` one: both sides know that."""
    return int(previous.digest[:15], 16)


def blank_like(tensor: Tensor) -> Tensor:
    """Memory for a float32 or float64 result of that shape.

    It is NumPy's, which has Linux back large arrays by large pages: the first touch of torch's own costs three times
    what a subtraction does.
    """
    import numpy as np
    import torch

    return torch.from_numpy(np.empty(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")))


def is_statistic(name: str) -> bool:
    """Whether that is the name of one of BatchNorm's statistics."""
    return any(fnmatchcase(name, one) for one in STATISTICS)


def _whole_numbers(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(f"int{8 * spec.item_size}", spec.shape)
