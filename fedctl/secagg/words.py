"""What keys are derived for and seals are bound to, in bytes that both sides make in the same way."""

import hashlib

from fedctl.secagg.keys import derived
from fedctl.secagg.messages import Cohort
from fedctl.secagg.place import bound


def sealed(cohort: Cohort, sender: str, receiver: str) -> bytes:
    """What a sealed message is bound to: in which round, from whom, to whom."""
    return cohort.bound("fedctl seal", sender, receiver)


def pairwise(cohort: Cohort, one: str, other: str, terms: bytes) -> bytes:
    """What two nodes agree on a key for: their mask, which the first by name adds, and the other takes.

    It is another one under other `terms`, so that the masks of nodes which were not told the same do not come off.
    """
    return cohort.bound("fedctl pairwise mask", *sorted((one, other)), terms)


def self_mask(cohort: Cohort, node: str, seed: bytes) -> bytes:
    """The key of the mask that a node adds for itself (32 bytes), of its self seed."""
    return derived(seed, cohort.bound("fedctl self mask", node))


def committed(seed: bytes) -> bytes:
    """What an advert tells of a self seed: enough to know it again, and nothing else."""
    return hashlib.sha256(bound("fedctl self seed", seed)).digest()
