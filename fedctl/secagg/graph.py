"""Who is whose neighbour: everybody everybody's up to 32 nodes, above that on a ring in random order.

Bell, Bonawitz, Gascón, Lepoint, Raykova: Secure Single-Server Aggregation with (Poly)Logarithmic Overhead, CCS 2020. A
Harary graph: each node's neighbours are the nearest on the ring, half of them on either side. The order is random since
dropouts come together: of nodes whose names are near, or whose machines are.
"""

import hashlib
import math
from collections.abc import Sequence

COMPLETE = 32
"""Up to so many nodes, everybody is everybody's neighbour."""
_DROPPED, _FAILURE = 0.1, 1e-3


def fewest(nodes: int) -> int:
    """The smallest degree that a node consents to: all the others, and above 32 nodes 2 log2 n."""
    return nodes - 1 if nodes <= COMPLETE else 2 * math.ceil(math.log2(nodes))


def degree_for(nodes: int, share: float) -> int:
    """How many neighbours a node needs.

    So many that where a tenth of the nodes drop out, every secret can still be told in 999 rounds of 1000, by a `share`
    of its holders. 30 for 100 nodes and 56 for 1000, with a share of 2/3.
    """
    if nodes <= COMPLETE:
        return nodes - 1
    return next(
        (
            degree
            for degree in range(fewest(nodes), nodes - 1, 2)
            if nodes * _too_many(nodes, degree, degree - threshold_for(share, degree + 1)) < _FAILURE
        ),
        nodes - 1,
    )


def threshold_for(share: float, holders: int) -> int:
    """How many holders must tell their shares: a `share` of them, and more than half."""
    if not 0 < share <= 1:
        raise ValueError(f"the share of holders should be above 0 and at most 1, not {share}")
    return max(holders // 2 + 1, math.ceil(share * holders - 1e-9))


def neighbours(nodes: Sequence[str], seed: bytes, degree: int) -> dict[str, frozenset[str]]:
    """Each node's neighbours, `degree` of them; who is one's neighbour has one as a neighbour."""
    if degree == len(nodes) - 1:
        return {node: frozenset(nodes) - {node} for node in nodes}
    if degree % 2 or not 0 < degree < len(nodes) - 1:
        raise ValueError(f"{len(nodes)} nodes cannot have {degree} neighbours each")
    ring = sorted(nodes, key=lambda node: hashlib.sha256(seed + node.encode()).digest())
    steps = [step for near in range(1, degree // 2 + 1) for step in (near, -near)]
    return {node: frozenset(ring[(place + step) % len(ring)] for step in steps) for place, node in enumerate(ring)}


def _too_many(nodes: int, degree: int, most: int) -> float:
    """The chance that of `degree` random other nodes more than `most` are among those that dropped out."""
    others, dropped = nodes - 1, math.ceil(_DROPPED * nodes)
    ways = sum(
        math.comb(dropped, gone) * math.comb(others - dropped, degree - gone)
        for gone in range(most + 1, min(dropped, degree) + 1)
    )
    return ways / math.comb(others, degree)
