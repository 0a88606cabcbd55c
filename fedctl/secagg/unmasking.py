"""What is left of the masks in a sum, from the shares that the survivors reveal; lies among the shares are got around.

Each secret that is told is held against its node's advert. Who is behind a share that lies, its holder or the node that
dealt it, cannot be known; a holder whose shares lie is asked last from then on.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from random import Random

from fedctl.errors import ModelError
from fedctl.secagg import shamir
from fedctl.secagg.keys import agreed, public_of
from fedctl.secagg.messages import Cohort, Revealed
from fedctl.secagg.words import committed, pairwise, self_mask

_TRIES = 200
"""Draws of shares until none of them lies: with 28 needed of 41, they get around three liars nearly always."""


class NotEnough(ModelError):
    """The shares that came do not tell the secrets of some nodes, `nodes`: the round has no sum, until others come."""

    def __init__(self, message: str, *, hint: str | None = None, nodes: Sequence[str]) -> None:
        super().__init__(message, hint=hint)
        self.nodes = tuple(nodes)


class FalseShares(NotEnough):
    """As many came as tell a secret, and tell none of these nodes': they dealt false ones, or their holders lie."""


def left_masks(
    cohort: Cohort,
    sharers: Collection[str],
    survivors: Collection[str],
    revealed: Mapping[str, Revealed],
    terms: bytes = b"",
) -> tuple[list[bytes], list[bytes]]:
    """The keys of the masks to add to the sum of the survivors' vectors, and of those to take from it.

    Raises NotEnough, and FalseShares where no further share would help.
    """
    added, taken, missing, suspects = list[bytes](), list[bytes](), list[str](), set[str]()
    error: type[NotEnough] = FalseShares
    alive = set(survivors)
    for node in sorted(sharers):
        advert = cohort.adverts[node]
        if node in alive:
            shares = {holder: one.seeds[node] for holder, one in revealed.items() if node in one.seeds}
            secret = _told(cohort, shares, suspects, committed, advert.seed_digest)
        else:
            shares = {holder: one.keys[node] for holder, one in revealed.items() if node in one.keys}
            secret = _told(cohort, shares, suspects, public_of, advert.mask_key)
        if secret is None:
            missing.append(node)
            if len(shares) < cohort.threshold:
                error = NotEnough
        elif node in alive:
            taken.append(self_mask(cohort, node, secret))
        else:
            for other in cohort.neighbours[node] & alive:
                mask = agreed(secret, cohort.adverts[other].mask_key, pairwise(cohort, node, other, terms))
                (added if node < other else taken).append(mask)
    if missing:
        lies = f"; those of {', '.join(sorted(suspects))} lie" if suspects else ""
        raise error(
            f"too few right shares came to unmask {', '.join(missing)}, of {cohort.threshold} that are needed{lies}",
            nodes=missing,
        )
    return added, taken


def _told(
    cohort: Cohort, shares: Mapping[str, bytes], suspects: set[str], shows: Callable[[bytes], bytes], shown: bytes
) -> bytes | None:
    """The secret that shows what was `shown`, from shares by holder, or None; whose share lies becomes a suspect."""
    threshold, at, chance = cohort.threshold, cohort.points, Random(0)
    order = sorted(shares, key=lambda holder: (holder in suspects, holder))
    for number in range(_TRIES if len(order) >= threshold else 0):
        picked = {at[holder]: shares[holder] for holder in order[:threshold]}
        secret = shamir.combine(picked, threshold)
        if secret is not None and shows(secret) == shown:
            if number:
                right = {holder: shamir.value_at(at[holder], picked, threshold) for holder in order}
                suspects.update(holder for holder in order if right[holder] != shamir.a_share(shares[holder]))
            return secret
        chance.shuffle(order)
    return None
