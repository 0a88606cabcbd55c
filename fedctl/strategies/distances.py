"""How far updates lie from each other, and from a point: over all floating values, in double precision.

Always by differences: norms and products of whole models would cancel where updates are close together, which is what
updates are, and take torch as long where rows are few. Reads block by block, so that memory does not grow with the
number of updates.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedctl.errors import ModelError
from fedctl.strategies import Contribution
from fedctl.strategies.elementwise import CHUNK, Rule, Values, is_averaged, length, norm, over_chunks, values_of
from fedctl.weights import spec_of

_MOST = 1 << 17  # values of all updates that one thread has in memory at once
_LONGEST = 1 << 13  # of one update: what is compared stays in the cache

Matrix = np.ndarray[Any, np.dtype[np.float64]]


class _Table(threading.local):
    """A thread's own table of doubles, made once: fresh memory for every block would cost more than the arithmetic."""

    def __init__(self, values: int) -> None:
        self._values = torch.empty(values, dtype=torch.float64)

    def filled(self, chunks: Sequence[Tensor]) -> Tensor:
        """The chunks as its rows, to be used before it is filled again."""
        table = self._values[: len(chunks) * len(chunks[0])].view(len(chunks), -1)
        for row, chunk in zip(table, chunks, strict=True):
            row.copy_(chunk)
        return table


def require(name: str, updates: Sequence[Contribution], *, hostile: int, least: int) -> None:
    """Refuse, with a ModelError, fewer updates than a rule needs to bear that many hostile nodes."""
    if len(updates) < least:
        raise ModelError(
            f"{name} needs {least} updates to bear {hostile} hostile {'node' if hostile == 1 else 'nodes'}, "
            f"and there {'is' if len(updates) == 1 else 'are'} {len(updates)}",
            hint="lower its option `hostile`, or gather more updates" if hostile else "gather more updates",
        )


def squared_distances(updates: Sequence[Contribution]) -> Matrix:
    """The squared distance between any two of the updates, as a symmetric matrix."""
    count, spec = len(updates), spec_of(updates[0].weights)
    chunk = max(1, min(_LONGEST, _MOST // count))
    pairs, table = torch.zeros(count * (count - 1) // 2, dtype=torch.float64), _Table(count * chunk)
    for name in sorted(name for name, tensor in spec.items() if is_averaged(tensor)):
        rows = [values_of(update.weights, name) for update in updates]

        def squares(part: slice, rows: Sequence[Values] = rows) -> Tensor:
            return torch.pdist(table.filled([row[part] for row in rows])).square_()

        for found in over_chunks(squares, length(spec[name]), chunk):
            pairs += found
    matrix = np.zeros((count, count))
    matrix[np.triu_indices(count, 1)] = pairs.numpy()
    return matrix + matrix.T


def distances_to(center: Rule, updates: Sequence[Contribution], start: Mapping[str, Tensor] | None = None) -> Matrix:
    """How far each update lies from `center` of its chunks; with `start`, the rule gets its chunk before theirs."""
    spec = spec_of(updates[0].weights)
    sources = [*([start] if start is not None else []), *(update.weights for update in updates)]
    chunk = max(1, min(CHUNK, _MOST // len(updates)))
    total = [0.0] * len(updates)
    for name in sorted(name for name, tensor in spec.items() if is_averaged(tensor)):
        rows = [values_of(source, name) for source in sources]

        def apart(part: slice, rows: Sequence[Values] = rows) -> list[float]:
            chunks = [row[part] for row in rows]
            point = center(chunks).double()
            return [norm(chunk.double() - point) for chunk in chunks[-len(updates) :]]

        for found in over_chunks(apart, length(spec[name]), chunk):
            total = [math.hypot(*both) for both in zip(total, found, strict=True)]
    return np.array(total)


def krum_scores(matrix: Matrix, hostile: int) -> Matrix:
    """For each update the sum of its squared distances to as many nearest others as honest nodes must leave it."""
    count = len(matrix)
    nearest = np.sort(matrix + np.diag(np.full(count, -1.0)), axis=1)[:, 1:]  # its own place comes first
    with np.errstate(over="ignore"):  # a sum beyond a double is as bad as any
        scores: Matrix = nearest[:, : max(1, count - hostile - 2)].sum(axis=1)
    return scores
