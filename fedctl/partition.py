"""Ways to deal one labelled data set out to sites, for demos and benchmarks.

Real nodes have their own data and need none of this. A function here takes the labels of a data set and returns, for
each site, the indices of its rows: every row goes to exactly one site, the same seed gives the same sites, and each
site can compute its own share without asking the others. (The same seed *and numpy*: its random streams may change
between releases, so give all nodes of a demo one version.)

This file travels to the nodes, where a user's `data.py` may import it: numpy only, Python 3.10, nothing of fedctl.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rows = NDArray[np.intp]

_REDRAWS = 1000


def dirichlet(labels: ArrayLike, *, sites: int, alpha: float, seed: int, smallest: int = 10) -> list[Rows]:
    """Deal rows so that every site sees the classes in proportions of its own.

    For each class, the shares that the sites get of it are drawn from a symmetric Dirichlet distribution: `alpha` near
    0 leaves most of a class with one site, 0.3 is clearly uneven, 100 is nearly even. All is drawn again until no site
    has fewer than `smallest` rows. After Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution
    for Federated Visual Classification" (2019), with the shares drawn per class, as has become usual, instead of per
    site: so the sites differ in size too.

    Args:
        labels: the class of each row, of shape (rows,).
        sites: how many sites there are, at least 1.
        alpha: the concentration, above 0.
        seed: the same seed deals the same rows.
        smallest: the fewest rows that a site may have.

    Returns:
        `sites` arrays of row indices, ascending; together they hold each row once.

    Raises:
        ValueError: an argument is out of its range, or 1000 draws left some site with too few rows.
    """
    classes = _classes(labels, sites)
    rows = sum(map(len, classes))
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha must be a finite number above 0, not {alpha}")
    if smallest < 0:
        raise ValueError(f"smallest must be at least 0, not {smallest}")
    if sites * smallest > rows:
        raise ValueError(f"{rows} rows cannot give {sites} sites {smallest} rows each")
    rng = np.random.default_rng(seed)
    for _ in range(_REDRAWS):
        dealt = [_cut(rng.permutation(members), rng.dirichlet(np.full(sites, alpha))) for members in classes]
        shares = [np.sort(np.concatenate(parts)) for parts in zip(*dealt, strict=True)]
        if min(map(len, shares)) >= smallest:
            return shares
    raise ValueError(
        f"none of {_REDRAWS} draws gave each of {sites} sites {smallest} of the {rows} rows at alpha {alpha}: "
        "take fewer sites, a larger alpha or a smaller `smallest`"
    )


def shards(labels: ArrayLike, *, sites: int, per_site: int = 2, seed: int) -> list[Rows]:
    """Deal rows so that every site sees only a few classes, and all sites have about the same number of rows.

    The rows are sorted by class and cut into `sites * per_site` equal shards, and each site is dealt `per_site` of
    them at random: with two shards a site knows about two classes. After McMahan and others, "Communication-Efficient
    Learning of Deep Networks from Decentralized Data" (2017).

    Args:
        labels: the class of each row, of shape (rows,).
        sites: how many sites there are, at least 1.
        per_site: how many shards each gets, at least 1.
        seed: the same seed deals the same shards.

    Returns:
        `sites` arrays of row indices, ascending; together they hold each row once.

    Raises:
        ValueError: an argument is out of its range, or there are fewer rows than shards.
    """
    by_class = np.concatenate(_classes(labels, sites))
    if per_site < 1:
        raise ValueError(f"per_site must be at least 1, not {per_site}")
    if sites * per_site > len(by_class):
        raise ValueError(f"{len(by_class)} rows cannot be cut into {sites * per_site} shards")
    pieces = np.array_split(by_class, sites * per_site)
    hands = np.random.default_rng(seed).permutation(len(pieces)).reshape(sites, per_site)
    return [np.sort(np.concatenate([pieces[piece] for piece in hand])) for hand in hands]


def _classes(labels: ArrayLike, sites: int) -> list[Rows]:
    """The row indices of each class, in the order of the classes."""
    values = np.asarray(labels)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"labels must be one row of at least one label, not of shape {values.shape}")
    if sites < 1:
        raise ValueError(f"sites must be at least 1, not {sites}")
    return [np.flatnonzero(values == value) for value in np.unique(values)]


def _cut(members: Rows, shares: NDArray[np.float64]) -> list[Rows]:
    """Cut the members into consecutive parts of these shares, which sum to 1."""
    return np.split(members, (np.cumsum(shares)[:-1] * len(members)).astype(np.intp))
