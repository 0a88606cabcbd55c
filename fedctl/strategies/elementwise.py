"""Arithmetic on corresponding values of many updates, a chunk at a time, in a wider type than theirs.

What the strategies share, and where they meet torch: their own modules import this one when they aggregate, so that a
strategy is named, built and checked without it. Memory is the one tensor that comes out and a few chunks, whatever the
number of updates. Chunks are worked on by as many threads as torch may use, and no bit depends on how many.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedctl.errors import ModelError
from fedctl.header import TensorSpec
from fedctl.strategies import Contribution
from fedctl.weights import Lazy, spec_of

CHUNK = 1 << 15  # elements: a chunk in the wide type stays in the cache, and torch handles it on one thread
_MOST_SORTED = 1 << 18  # values of all updates that one thread sorts at once

_TINY = 2.0**-540  # no sum of squares of doubles that were made so much smaller is beyond a double

_DOUBLE = (torch.float64, torch.float32)

T = TypeVar("T")


class Values(Protocol):
    """The values of a tensor in a row, read where they are sliced."""

    def __getitem__(self, part: slice, /) -> Tensor: ...


Rule = Callable[[Sequence[Tensor]], Tensor]
"""From flat chunks, which it must not change, to a chunk of as many values."""


class Moved(Lazy):
    """An update that went only a share of its way: start + share (update - base), of its floating values.

    `base` is the model that it was trained from (None: `start` itself).
    """

    def __init__(
        self,
        start: Mapping[str, Tensor],
        update: Mapping[str, Tensor],
        share: float,
        base: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(spec_of(update), self._tensor)
        self._start, self._update, self._share, self._base = start, update, share, base

    def _tensor(self, name: str) -> Tensor:
        spec = self.spec[name]
        return combined(lambda chunks: chunks[0], [self.row(name)], spec) if is_averaged(spec) else self._update[name]

    def row(self, name: str) -> Values:
        """The values of the tensor, in the wider type and moved only as they are sliced."""
        start, update, share = values_of(self._start, name), values_of(self._update, name), self._share
        base = None if self._base is None else values_of(self._base, name)

        class Row:
            def __getitem__(self, part: slice) -> Tensor:
                if base is None:
                    return shifted([start[part], update[part]], [share])
                began = base[part]
                return start[part].to(wide(began.dtype)).add(update[part].to(wide(began.dtype)).sub(began), alpha=share)

        return Row()


def in_name_order(updates: Sequence[Contribution]) -> list[Contribution]:
    """The contributions in the order in which sums run, so that the order of arrival changes no bit."""
    return sorted(updates, key=lambda update: update.name)


def require_start(name: str, model: Mapping[str, Tensor]) -> None:
    """Refuse, with a ModelError, that there is no model to move; `name` is the strategy's."""
    if not model:
        raise ModelError(
            f"{name} needs the model that the updates started from, and none was given",
            hint="over plain files `--model FILE` gives it",
        )


def is_averaged(spec: TensorSpec) -> bool:
    """Whether means of such a tensor have a meaning: floating and complex ones, neither integers nor booleans."""
    return spec.is_inexact


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in: double precision for single and double, single precision for all narrower ones."""
    return torch.float64 if dtype in _DOUBLE else torch.float32


def in_a_row(tensor: Tensor) -> Tensor:
    """A flat view of the tensor; of a complex one its real and imaginary parts in turn."""
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().reshape(-1)


def values_of(weights: Mapping[str, Tensor], name: str) -> Values:
    """The values of one tensor of a mapping."""
    return weights.row(name) if isinstance(weights, Moved) else in_a_row(weights[name])


def remembered(memory: Mapping[str, Tensor], key: str, count: int) -> Values:
    """The values of one tensor of a memory, which begins at 0."""
    return values_of(memory, key) if key in memory else torch.zeros(()).expand(count)


def length(spec: TensorSpec) -> int:
    """How many values a tensor has in a row."""
    return spec.count * (2 if spec.dtype.startswith("complex") else 1)


def over_chunks(work: Callable[[slice], T], count: int, chunk: int = CHUNK) -> Iterator[T]:
    """`work` on each chunk of `count` values, on as many threads as torch may use; results in the order of chunks.

    They are to be taken to the end. Each thread has torch to itself: were it to split a chunk's work once more, small
    pieces would wait for each other.
    """
    parts = [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    allowed = torch.get_num_threads()
    threads = min(allowed, len(parts))
    if threads < 2:
        yield from map(work, parts)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, parts)
    finally:
        torch.set_num_threads(allowed)


def combined(rule: Rule, rows: Sequence[Values], spec: TensorSpec, chunk: int = CHUNK) -> Tensor:
    """A tensor of that spec, whose every chunk is `rule` of the chunks of `rows`."""
    result = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
    values = in_a_row(result)

    def work(part: slice) -> None:
        values[part].copy_(rule([row[part] for row in rows]))

    deque(over_chunks(work, len(values), chunk), maxlen=0)
    return result


def each(
    rule: Rule, updates: Sequence[Contribution], *, start: Mapping[str, Tensor] | None = None, chunk: int = CHUNK
) -> Lazy:
    """The model whose floating tensors are `rule` of the updates' values; of the others it has the largest.

    With `start`, the rule gets its values before those of the updates.
    """
    spec = spec_of(updates[0].weights)
    sources = [*([start] if start is not None else []), *(update.weights for update in updates)]

    def tensor(name: str) -> Tensor:
        if is_averaged(spec[name]):
            return combined(rule, [values_of(source, name) for source in sources], spec[name], chunk)
        return largest([update.weights[name] for update in updates])

    return Lazy(spec, tensor)


def largest(tensors: Sequence[Tensor]) -> Tensor:
    """The largest of each element: how integers (counters) and booleans (true if any is) are combined."""
    result = tensors[0].clone()
    for tensor in tensors[1:]:
        np.maximum(result.numpy(), tensor.numpy(), out=result.numpy())  # torch itself lacks it for unsigned types
    return result


def norm(values: Tensor) -> float:
    """The norm of doubles, also where their squares are beyond a double; infinite where it is itself."""
    found = float(torch.linalg.vector_norm(values))
    return found if math.isfinite(found) else float(torch.linalg.vector_norm(values * _TINY)) / _TINY


def scaled(weights: Sequence[float]) -> list[float]:
    """The weights times one power of two, which is exact, so that their sum lies in [0.5, 1) and no product overflows.

    Equal weights become powers of two themselves, which keeps the mean of a single double-precision update exact.
    """
    if min(weights) == max(weights):
        weights = [1.0] * len(weights)
    _, largest = math.frexp(max(weights))
    weights = [math.ldexp(weight, -largest) for weight in weights]  # else the sum itself could be beyond a double
    _, exponent = math.frexp(math.fsum(weights))
    return [math.ldexp(weight, -exponent) for weight in weights]


def mean(chunks: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean, in the wider type; `weights` as `scaled` gives them."""
    total = chunks[0].to(wide(chunks[0].dtype)) * weights[0]
    term = torch.empty_like(total)
    for chunk, weight in zip(chunks[1:], weights[1:], strict=True):
        total.add_(term.copy_(chunk), alpha=weight)
    return total.div_(math.fsum(weights))


def shifted(chunks: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The first chunk + sum(share (chunk - the first)) over the others, in the wider type."""
    start = chunks[0].to(wide(chunks[0].dtype))
    total, term = start.clone(), torch.empty_like(start)
    for chunk, share in zip(chunks[1:], shares, strict=True):
        total.add_(term.copy_(chunk).sub_(start), alpha=share)
    return total


def columns_at_once(updates: int) -> int:
    """How many values of each update make a chunk where all are sorted together."""
    return max(1, min(CHUNK, _MOST_SORTED // updates))


def ascending(chunks: Sequence[Tensor]) -> "np.ndarray[Any, Any]":
    """A table with a row for each value and a column for each chunk, its rows in ascending order."""
    dtype = chunks[0].dtype if chunks[0].dtype in _DOUBLE else torch.float32
    table = np.empty((len(chunks[0]), len(chunks)), dtype=np.float64 if dtype == torch.float64 else np.float32)
    for column, chunk in enumerate(chunks):
        table[:, column] = chunk.to(dtype).numpy()
    table.sort(axis=1)  # several times as fast as torch's own
    return table


def median(chunks: Sequence[Tensor]) -> Tensor:
    """The middle value of each coordinate, of an even number the mean of the middle two."""
    return torch.from_numpy(middle(ascending(chunks)))


def middle(table: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """The median of each row of a table that `ascending` made, in double precision."""
    count = table.shape[1]
    upper = table[:, count // 2].astype(np.float64)
    return upper if count % 2 else table[:, count // 2 - 1].astype(np.float64) / 2 + upper / 2


def mean_of_columns(table: "np.ndarray[Any, Any]") -> Tensor:
    """The mean of each row of a table."""
    columns = [torch.from_numpy(table[:, column]) for column in range(table.shape[1])]
    return mean(columns, scaled([1.0] * len(columns)))
