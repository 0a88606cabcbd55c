"""What was spent: the door to the accountants of Opacus, which imports torch and takes seconds the first time.

A history is the noise of each training or round as a multiple of the clip, the share of examples (or nodes) that took
part by chance, and the number of steps; all in the relation of one more or one less.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

Step = tuple[float, float, int]
"""Noise, rate in (0, 1], steps."""

Accountant = Literal["prv", "rdp"]

_ERROR = 0.01  # of epsilon, by which the numerical accountant may be too high
_MOST_POINTS = 1 << 22  # of its grid: some seconds of one core
_ORDERS = (*(1 + tenths / 10 for tenths in range(1, 100)), *range(12, 64))  # as Opacus has them
_MOST_KINDS = 16  # of steps, for each of which it has such a grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """The `epsilon` at `delta`, an upper bound, and which accountant gave it: infinite where a step had no noise."""

    epsilon: float
    delta: float
    accountant: Accountant = "rdp"


def spent(history: Iterable[Sequence[float]], delta: float, *, is_discrete: bool = False) -> Spent:
    """What a history comes to; nothing costs nothing.

    The lower of two bounds: Rényi differential privacy, and where its grid is of a reasonable size the numerical
    composition of Gopi, Lee, Wutschitz (NeurIPS 2021), which is tighter but for very little noise or very few steps.
    With `is_discrete` noise it is the first alone: that is proven for the discrete Gaussian as for the Gaussian
    (Canonne, Kamath, Steinke 2020), and the second is not. Raises ValueError for what is no history.
    """
    steps = _merged(history)
    if not 0 < delta < 1:
        raise ValueError(f"delta should be between 0 and 1, not {delta}")
    if not steps:
        return Spent(epsilon=0.0, delta=delta)
    if any(noise == 0 for noise, _, _ in steps):
        return Spent(epsilon=math.inf, delta=delta)
    bound = Spent(epsilon=_rdp(steps, delta), delta=delta)
    if is_discrete or not _is_for_a_grid(steps, delta):
        return bound
    return min(bound, Spent(epsilon=_prv(steps, delta), delta=delta, accountant="prv"), key=lambda one: one.epsilon)


def epsilon(history: Iterable[Sequence[float]], delta: float, *, is_discrete: bool = False) -> float:
    """The epsilon of `spent`."""
    return spent(history, delta, is_discrete=is_discrete).epsilon


def is_within(budget: float, history: Sequence[Sequence[float]], delta: float, *, is_discrete: bool = False) -> bool:
    """Whether a history spends no more than that; the bound that costs nothing is tried first."""
    if epsilon(history, delta, is_discrete=True) <= budget:
        return True
    return not is_discrete and epsilon(history, delta) <= budget


def steps_within(
    budget: float,
    step: tuple[float, float],
    delta: float,
    *,
    history: Sequence[Step] = (),
    most: int = 100_000,
    is_discrete: bool = False,
) -> int:
    """How many more steps (or rounds) of this noise and rate a budget allows, up to `most`, after what is spent."""

    def allows(count: int, *, is_discrete: bool = is_discrete) -> bool:
        return epsilon([*history, (*step, count)], delta, is_discrete=is_discrete) <= budget

    # The bound that costs nothing first: the other one allows a little more.
    low = _last(lambda count: allows(count, is_discrete=True), 0, most)
    return low if is_discrete else _last(allows, low, most)


def noise_within(budget: float, rate: float, steps: int, delta: float) -> float | None:
    """The least noise, in tenths, by which so many steps spend no more than that, by the bound that costs nothing.

    None where by that bound no noise does: it has a least epsilon for each delta.
    """

    def is_too_little(tenths: int) -> bool:
        return epsilon([(tenths / 10, rate, steps)], delta, is_discrete=True) > budget

    most = 10**6
    return None if is_too_little(most) else (_last(is_too_little, 0, most) + 1) / 10


def _last(holds: Callable[[int], bool], low: int, most: int) -> int:
    """The last count up to `most` for which that holds, from one on for which it does."""
    gap = max(1, low // 8)
    high = low
    while high < most:
        low, high, gap = high, min(most, high + gap), 2 * gap
        if not holds(high):
            break
    else:
        return most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _merged(history: Iterable[Sequence[float]]) -> tuple[Step, ...]:
    """The history with like steps counted together, which costs the accountants less; raises ValueError."""
    found: dict[tuple[float, float], int] = {}
    for noise, rate, steps in history:
        if not (math.isfinite(noise) and noise >= 0 and 0 < rate <= 1 and steps >= 0 and int(steps) == steps):
            raise ValueError(f"no step of a history: noise {noise}, rate {rate}, {steps} steps")
        if steps:
            found[float(noise), float(rate)] = found.get((float(noise), float(rate)), 0) + int(steps)
    return tuple((*key, steps) for key, steps in sorted(found.items()))


# Nodes with as many examples ask for the same, and a round for what the one before has looked ahead to.


@lru_cache(maxsize=1024)
def _rdp(steps: tuple[Step, ...], delta: float) -> float:
    """As Opacus goes from Rényi's divergences to an epsilon: Balle and others, AISTATS 2020."""
    rows = [(count, _divergences(noise, rate)) for noise, rate, count in steps]
    found = (
        math.fsum(count * row[place] for count, row in rows)
        - (math.log(delta) + math.log(order)) / (order - 1)
        + math.log((order - 1) / order)
        for place, order in enumerate(_ORDERS)
    )
    return min((each for each in found if not math.isnan(each)), default=math.inf)


@lru_cache(maxsize=16_384)
def _divergences(noise: float, rate: float) -> tuple[float, ...]:
    """Rényi's divergence of each order, of one step; with all examples without Opacus, which a node may not have."""
    if rate == 1:
        return tuple(order / (2 * noise**2) for order in _ORDERS)
    with _quiet():
        from opacus.accountants.analysis.rdp import compute_rdp

        return tuple(map(float, compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=list(_ORDERS))))


@lru_cache(maxsize=1024)
def _prv(steps: tuple[Step, ...], delta: float) -> float:
    """Infinite where the accountant finds that its grid does not do: the other bound holds all the same."""
    with _quiet(), suppress(RuntimeError, ValueError):
        from opacus.accountants import PRVAccountant

        accountant = PRVAccountant()
        accountant.history = list(steps)
        found = float(accountant.get_epsilon(delta, eps_error=_ERROR))
        return math.inf if math.isnan(found) else found
    return math.inf


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings (of better orders, of the logarithm of 0 at a rate of 1), and with the log as it was.

    Opacus gives the root logger a handler as it is imported, and everybody's messages would come out of it.
    """
    handlers = logging.root.handlers[:]
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.handlers[:] = handlers


def _is_for_a_grid(steps: tuple[Step, ...], delta: float) -> bool:
    """Whether the numerical accountant's grid, from its mesh and the span of the privacy loss, is of a sane size."""
    if len(steps) > _MOST_KINDS:
        return False
    error = delta / 1000
    mesh = _ERROR / math.sqrt(sum(count for _, _, count in steps) * math.log(12 / error) / 2)
    return 2 * (_rdp(steps, error / 4) + 3) / mesh <= _MOST_POINTS
