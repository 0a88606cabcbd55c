"""The coordinator's side of secure aggregation: what the nodes send is checked, passed on, and summed.

It holds no secret. Whatever comes of a node as JSON is refused with a ValueError where it is not exactly right.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fedctl.secagg import shamir
from fedctl.secagg.graph import degree_for, threshold_for
from fedctl.secagg.keys import Pair, agreed, is_signed
from fedctl.secagg.masks import add_keystreams, check_vector
from fedctl.secagg.messages import Advert, Cohort, Inbox, Revealed, Sealed, Signed
from fedctl.secagg.node import check_identity
from fedctl.secagg.unmasking import left_masks

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_advert(value: Any, run: str, round: int, node: str) -> Advert:
    """A node's advert, whose signature holds for this round, and whose keys agree with others as they should."""
    advert = Advert.from_json(value)
    if advert.node != node:
        raise ValueError(f"this is the advert of {advert.node}")
    check_identity(advert, run, round)
    for key in (advert.mask_key, advert.seal_key):
        agreed(Pair.new().private, key, b"")
    return advert


def cohort_of(
    run: str, round: int, adverts: Iterable[Advert], *, share: float = 2 / 3, degree: int | None = None
) -> Cohort:
    """The cohort of these adverts, two at least; a secret is told by a `share` of its holders, and more than half.

    `degree` is how many neighbours each node has (None: `graph.degree_for`; up to 32 nodes, all the others).
    """
    found = sorted(adverts, key=lambda advert: advert.node)
    degree = degree_for(len(found), share) if degree is None else degree
    return Cohort(
        run=run,
        round=round,
        adverts={advert.node: advert for advert in found},
        degree=degree,
        threshold=threshold_for(share, degree + 1),
    )


def check_sealed(value: Any, cohort: Cohort, node: str) -> Sealed:
    """What a node sealed: a share for each of its neighbours, and for nobody else."""
    sealed = Sealed.from_json(value)
    if sealed.shares.keys() != cohort.neighbours[node]:
        raise ValueError("there should be a share for each neighbour, and no other")
    return sealed


def inbox_of(cohort: Cohort, node: str, sealed: Mapping[str, Sealed]) -> Inbox:
    """What `node` is sent, of what each sharer sealed."""
    senders = sorted(cohort.neighbours[node] & sealed.keys())
    return Inbox(sharers=tuple(sorted(sealed)), shares={sender: sealed[sender].shares[node] for sender in senders})


def check_signed(value: Any, cohort: Cohort, node: str, sharers: Iterable[str], survivors: Iterable[str]) -> bytes:
    """A node's signature on who survived, which holds (64 bytes)."""
    signature = Signed.from_json(value).signature
    words = cohort.agreed(tuple(sorted(sharers)), tuple(sorted(survivors)))
    if not is_signed(cohort.adverts[node].identity, signature, words):
        raise ValueError(f"the signature of {node} on the survivors does not hold")
    return signature


def check_revealed(
    value: Any, cohort: Cohort, node: str, sharers: Collection[str], survivors: Collection[str]
) -> Revealed:
    """What a node reveals: a share of each neighbour's self seed, or of its mask key where it dropped out."""
    revealed = Revealed.from_json(value)
    near, alive = {node, *cohort.neighbours[node]}, set(survivors)
    if revealed.seeds.keys() != near & alive or revealed.keys.keys() != (near & set(sharers)) - alive:
        raise ValueError("there should be one share of each neighbour that shared, and no other")
    for share in (*revealed.seeds.values(), *revealed.keys.values()):
        shamir.a_share(share)
    return revealed


def unmask_sum(
    cohort: Cohort,
    sharers: Collection[str],
    survivors: Collection[str],
    vectors: Iterable[NDArray[Any]],
    revealed: Mapping[str, Revealed],
    terms: bytes = b"",
) -> NDArray[Any]:
    """The sum of the survivors' vectors, in their ring; `vectors` has one of each, in any order, and is walked once.

    They were masked under these `terms`; under others their sum stays noise. What shares tell is held against the
    adverts, and where one lies, other shares are tried. Raises NotEnough where no shares tell a secret, before any
    vector is read, and ValueError for vectors that are not alike.
    """
    added, taken = left_masks(cohort, sharers, survivors, revealed, terms)
    total, count = None, 0
    for vector in vectors:
        check_vector(vector)
        count += 1
        if total is None:
            total = vector.copy()
        elif (vector.dtype, vector.shape) != (total.dtype, total.shape):
            raise ValueError("the vectors of a sum are of one length and one ring")
        else:
            total += vector
    if total is None or count != len(survivors):
        raise ValueError(f"there are {count} vectors of {len(survivors)} survivors")
    add_keystreams(total, added=added, taken=taken)
    return total
