"""Which nodes a round takes where chance is part of a guarantee: each node by a coin of its own.

Pure. A guarantee per node is stronger the fewer nodes a round takes, if nobody can know which (Poisson sampling). The
coins follow from a number that each run draws for itself, so a resume draws the same cohort.
"""

import hashlib
import math
from collections.abc import Collection

from fedctl.federation import Federation, needed

LEAST_MASKED = 3
"""A sum of two updates tells each of the two nodes the other's."""
_MOST_TRIES = 1000
_NEGLIGIBLE = 0.1
"""Of delta, which draws that were thrown away for being too small may add to it over a run."""


def least(federation: Federation) -> int:
    """The fewest nodes that a round may be of."""
    return LEAST_MASKED if federation.privacy.is_secure else 1


def share(federation: Federation) -> float:
    """The share of the nodes that a round is expected to take."""
    cohort, nodes = federation.schedule.cohort, len(federation.nodes)
    return cohort if isinstance(cohort, float) else min(1.0, cohort / nodes)


def is_by_coin(federation: Federation) -> bool:
    """Whether each node is drawn for itself, so that a round's number of nodes is left to chance.

    Where updates are masked nothing is gained by it: all of a cohort know who is in it, and so does the coordinator,
    against whom distributed noise is.
    """
    return federation.privacy.mode == "central" and not federation.privacy.is_secure and share(federation) < 1


def expected(federation: Federation) -> float:
    """How many nodes a round is expected to take."""
    nodes = len(federation.nodes)
    return share(federation) * nodes if is_by_coin(federation) else needed(federation.schedule.cohort, nodes)


def rate(federation: Federation) -> float:
    """The rate that a guarantee may count with: 1, as if all nodes took part, where chance is not what it should be.

    A draw of too few nodes is thrown away, which shifts the chances by how likely that is: all that a run may throw
    away has to be little beside delta.
    """
    dp = federation.privacy.differential_privacy
    if dp is None or not is_by_coin(federation):
        return 1.0
    nodes, chance = len(federation.nodes), share(federation)
    thrown_away = sum(
        math.comb(nodes, count) * chance**count * (1 - chance) ** (nodes - count) for count in range(least(federation))
    )
    return chance if federation.rounds * thrown_away <= _NEGLIGIBLE * dp.delta else 1.0


def is_counted(federation: Federation) -> bool:
    """Whether a guarantee counts on the draw, so that nobody may take part who was not drawn."""
    return rate(federation) < 1


def drawn(federation: Federation, round: int, draw: int, here: Collection[str]) -> tuple[str, ...]:
    """The nodes of a round among those that are `here`, by name.

    Where the guarantee counts on it the draw is of all nodes, and none may be left: were it of those that are here, and
    drawn anew for being of too few, a node would be taken the more often the more others are away. Else there are at
    least as many as a round may be of, if there are any.
    """
    names = sorted(node.name for node in federation.nodes) if is_counted(federation) else sorted(here)
    enough = min(least(federation), len(names))
    chance = share(federation)
    for attempt in range(_MOST_TRIES):
        found = [name for name in names if _coin(f"{draw}/{round}/{attempt}/{name}") < chance]
        if len(found) >= enough:
            break
    else:
        found = names[:enough]
    there = set(here)
    return tuple(name for name in found if name in there)


def _coin(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56
