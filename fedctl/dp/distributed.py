"""Noise that the nodes add themselves: each to its masked update as whole numbers of steps, so that the sum has enough.

Kairouz, Liu, Steinke: The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation,
ICML 2021 (arXiv:2102.06387).
"""

import math
from typing import Any

from numpy.typing import NDArray

from fedctl.dp.noise import MOST, Generator
from fedctl.errors import ConfigError

_RUN = 1 << 16
_LEAST = 0.5  # steps, from which on the theorem holds
_FARTHEST = 9  # deviations, beyond which a Gaussian is once in 10**18
_MOST_APART = 1e-9  # of the privacy loss, that a sum of discrete Gaussians is no discrete Gaussian


def deviation(noise: float, clip: float, *, step: float, count: int, least: int) -> float:
    """The deviation of each node's noise, in steps, so that `least` nodes' noise is enough for the guarantee.

    An update of `count` values and of norm `clip` has one of up to clip + step sqrt(count) once its values are rounded,
    up or down, to whole steps; the noise is that of this norm. Where more nodes come than `least`, there is more noise
    than is counted. Raises ConfigError where the noise is so few steps wide that the sum of the nodes' would not count
    as Gaussian (Kairouz, Liu, Steinke 2021, theorem 1), or more than can be drawn.
    """
    found = noise * (clip / step + math.sqrt(count)) / math.sqrt(least)
    if found > MOST:
        raise ConfigError(
            f"privacy: a node's noise is {found:.3g} steps of rounding wide, and at most {MOST:.3g} can be drawn",
            hint="raise secure_aggregation/range, which makes the steps wider",
        )
    apart = 10 * (least - 1) * math.exp(-((math.pi * found) ** 2)) * math.sqrt(count)
    if found < _LEAST or apart > _MOST_APART:
        raise ConfigError(
            f"privacy: a node's noise is only {found:.3g} steps of rounding wide, and does not count as Gaussian",
            hint="lower secure_aggregation/range, which makes the steps finer, or raise the noise",
        )
    return found


def check_room(noise: float, clip: float, *, range: float, cohort: int, least: int) -> None:
    """Refuse a range at whose ends the sum of `cohort` updates and their noise would come around in the ring.

    No value of a clipped update is beyond `clip`, nor that of the noise beyond nine deviations; raises ConfigError.
    """
    most = clip + _FARTHEST * noise * clip / math.sqrt(least * cohort)
    if most > range:
        raise ConfigError(
            f"privacy/secure_aggregation/range: updates and their noise go up to {most:.3g}, not {range:g}",
            hint=f"give at least {math.ceil(10 * most) / 10:g}",
        )


def noisy(values: NDArray[Any], std: float, generator: Generator) -> None:
    """Add discrete Gaussian noise of `std` steps to whole numbers modulo 2^16, 2^32 or 2^64, in place."""
    for start in range(0, len(values), _RUN):
        some = values[start : start + _RUN]
        some += generator.discrete_gaussian(len(some), std).astype(some.dtype)
