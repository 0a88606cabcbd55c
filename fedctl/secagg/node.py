"""The node's side of secure aggregation, in the order in which a round calls it.

advertise, share, receive, mask, survived, unmask. Each takes the `Secrets` of the round and returns the next ones:
write these down (0600) before the answer leaves the node. Asked the same once more, each answers the same once more,
but `mask`, which works once. Asked another thing, each raises ValueError, as for whatever is not exactly right.
The coordinator is trusted with nothing here: it relays, and every rule that protects this node is kept by this node.
"""

from __future__ import annotations

import secrets as randomness
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedctl.secagg import shamir
from fedctl.secagg.keys import Identity, Pair, agreed, fingerprint, is_signed, seal, unseal
from fedctl.secagg.masks import add_keystreams, check_vector
from fedctl.secagg.messages import Advert, Agreement, Cohort, Inbox, Revealed, Sealed, Signed, Survivors
from fedctl.secagg.place import Place
from fedctl.secagg.secret import Private, Secrets
from fedctl.secagg.words import committed, pairwise, sealed, self_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray


def advertise(identity: Identity, place: Place) -> tuple[Secrets, Advert]:
    """Fresh keys for a round. To be called once a round: asked again, a node answers `secrets.advert`."""
    masking, sealing, seed = Pair.new(), Pair.new(), randomness.token_bytes(shamir.SECRET_SIZE)
    unsigned = Advert(
        node=place.node,
        identity=identity.public,
        mask_key=masking.public,
        seal_key=sealing.public,
        seed_digest=committed(seed),
        signature=b"",
    )
    advert = replace(unsigned, signature=identity.sign(unsigned.signed(place.run, place.round)))
    private = Private(seed=seed, mask_key=masking.private, seal_key=sealing.private)
    return Secrets(place=place, advert=advert, private=private), advert


def share(
    secrets: Secrets, cohort: Cohort, *, least: int, pins: Mapping[str, str] | None = None
) -> tuple[Secrets, Sealed]:
    """This node's self seed and mask key in shares, each sealed for one neighbour. The first cohort of a round stands.

    Refuses a cohort of another round; of fewer than `least`; without this node's advert as it sent it; with a signature
    that does not hold; and, where `pins` (fingerprints by name) are given, with an identity that is not pinned so.
    """
    if secrets.cohort is not None and secrets.sealed is not None:
        if secrets.cohort.digest != cohort.digest:
            raise ValueError(f"round {cohort.round} has another cohort already")
        return secrets, secrets.sealed
    place, private = secrets.place, secrets.private
    if private is None or (cohort.run, cohort.round) != (place.run, place.round):
        raise ValueError(f"this is the cohort of another round, {cohort.round} of {cohort.run}")
    if len(cohort.adverts) < least:
        raise ValueError(f"the cohort has {len(cohort.adverts)} nodes, and the owner asks for {least}")
    if cohort.adverts.get(place.node) != secrets.advert:
        raise ValueError("the cohort has another advert of this node than the one it sent")
    for advert in cohort.adverts.values():
        check_identity(advert, cohort.run, cohort.round)
        if pins and advert.node != place.node and pins.get(advert.node) != fingerprint(advert.identity):
            raise ValueError(f"the identity of {advert.node}, {fingerprint(advert.identity)}, is not the pinned one")
    holders = sorted({place.node, *cohort.neighbours[place.node]})
    points = [cohort.points[holder] for holder in holders]
    seeds, keys = (shamir.split(secret, cohort.threshold, points) for secret in (private.seed, private.mask_key))
    own = cohort.points[place.node]
    outgoing = Sealed(
        shares={
            holder: seal(
                private.seal_key,
                cohort.adverts[holder].seal_key,
                seeds[point] + keys[point],
                sealed(cohort, place.node, holder),
            )
            for holder, point in zip(holders, points, strict=True)
            if point != own
        }
    )
    held = replace(secrets, seeds={place.node: seeds[own]}, keys={place.node: keys[own]})
    return replace(held, cohort=cohort, least=least, sealed=outgoing), outgoing


def receive(secrets: Secrets, inbox: Inbox) -> Secrets:
    """Open and check what the neighbours sealed for this node; best before a training. The first inbox stands.

    Refuses fewer sharers than the quorum, than `least`, or than tell a secret of this node; a share that is missing or
    too many; and whatever was not sealed by that neighbour, for this node, in this cohort.
    """
    cohort, private, node = _cohort(secrets), secrets.private, secrets.place.node
    if private is None:
        raise ValueError(f"round {cohort.round} is masked already")
    if secrets.sharers not in {None, inbox.sharers}:
        raise ValueError(f"round {cohort.round} has other sharers already")
    _check_members(secrets, inbox.sharers, cohort.adverts, "sharers")
    senders = cohort.neighbours[node] & set(inbox.sharers)
    if inbox.shares.keys() != senders:
        raise ValueError("there should be a share of each neighbour that sent one, and no other")
    seeds, keys = {node: secrets.seeds[node]}, {node: secrets.keys[node]}
    for sender in sorted(senders):
        key, come = cohort.adverts[sender].seal_key, inbox.shares[sender]
        try:
            opened = unseal(private.seal_key, key, come, sealed(cohort, sender, node))
            seeds[sender], keys[sender] = opened[: shamir.SHARE_SIZE], opened[shamir.SHARE_SIZE :]
            shamir.a_share(seeds[sender])
            shamir.a_share(keys[sender])
        except ValueError as error:
            raise ValueError(f"the share of {sender}: {error}") from error
    if secrets.sharers is not None and (secrets.seeds, secrets.keys) != (seeds, keys):
        raise ValueError(f"round {cohort.round} has other shares already")
    return replace(secrets, sharers=inbox.sharers, seeds=seeds, keys=keys)


def mask(secrets: Secrets, vector: NDArray[Any], terms: bytes = b"") -> Secrets:
    """Mask a vector in place: flat, in one piece, of uint16, uint32 or uint64. Once a round: its keys are forgotten.

    `terms` say of what the vector is and how it was made: of a sum of vectors under different ones no mask comes off.
    The secrets that come back are to be on the disk before the masked vector leaves the node: two vectors under the
    same masks would tell their difference.
    """
    cohort, private, node = _cohort(secrets), secrets.private, secrets.place.node
    if private is None:
        raise ValueError(f"round {cohort.round} is masked already: its masks are for one vector")
    if secrets.sharers is None:
        raise ValueError(f"who shared in round {cohort.round} is not known yet")
    check_vector(vector)
    added, taken = [self_mask(cohort, node, private.seed)], list[bytes]()
    for other in sorted(cohort.neighbours[node] & set(secrets.sharers)):
        key = agreed(private.mask_key, cohort.adverts[other].mask_key, pairwise(cohort, node, other, terms))
        (added if node < other else taken).append(key)
    add_keystreams(vector, added=added, taken=taken)
    return replace(secrets, private=None)


def survived(secrets: Secrets, identity: Identity, survivors: Survivors) -> tuple[Secrets, Signed]:
    """Sign who survived. The first list of a round stands.

    The shares that are of no use for these survivors are forgotten: whoever gets hold of the secrets later, of however
    many nodes, can take the masks off no single vector with them.

    Refuses a list without this node, with one who did not share, and of fewer than the quorum, than `least`, or than
    tell a secret of this node; and any before this node has masked.
    """
    cohort = _cohort(secrets)
    if secrets.sharers is None or secrets.private is not None:
        raise ValueError(f"nothing was masked in round {cohort.round} yet")
    if identity.public != secrets.advert.identity:
        raise ValueError(f"round {cohort.round} was begun with another identity")
    if secrets.survivors not in {None, survivors.nodes}:
        raise ValueError(f"round {cohort.round} has other survivors already")
    _check_members(secrets, survivors.nodes, secrets.sharers, "survivors")
    signature = identity.sign(cohort.agreed(secrets.sharers, survivors.nodes))
    alive = set(survivors.nodes)
    seeds = {node: share for node, share in secrets.seeds.items() if node in alive}
    keys = {node: share for node, share in secrets.keys.items() if node not in alive}
    return replace(secrets, survivors=survivors.nodes, seeds=seeds, keys=keys), Signed(signature=signature)


def unmask(secrets: Secrets, agreement: Agreement) -> Revealed:
    """Of itself and its neighbours, the share of a survivor's self seed, or of a dropped one's mask key: never both.

    Refuses other survivors than those that this node signed, a signature on them
    that does not hold or is not a survivor's, and fewer of them than the quorum.
    """
    cohort, node, sharers, survivors = _cohort(secrets), secrets.place.node, secrets.sharers, secrets.survivors
    if sharers is None or survivors is None or agreement.nodes != survivors:
        raise ValueError("these are not the survivors that this node signed")
    words = cohort.agreed(sharers, survivors)
    for signer, signature in agreement.signatures.items():
        if signer not in survivors or not is_signed(cohort.adverts[signer].identity, signature, words):
            raise ValueError(f"the signature of {signer} on the survivors does not hold")
    if len(agreement.signatures) < cohort.quorum:
        raise ValueError(f"{len(agreement.signatures)} signed who survived, and {cohort.quorum} must")
    alive, near = set(survivors), {node, *cohort.neighbours[node]}
    return Revealed(
        seeds={other: secrets.seeds[other] for other in sorted(near & alive)},
        keys={other: secrets.keys[other] for other in sorted((near & set(sharers)) - alive)},
    )


def check_identity(advert: Advert, run: str, round: int) -> None:
    """Raise ValueError where an advert is not signed by the identity in it, for this round."""
    if not is_signed(advert.identity, advert.signature, advert.signed(run, round)):
        raise ValueError(f"the signature of {advert.node} does not hold")


def _cohort(secrets: Secrets) -> Cohort:
    if secrets.cohort is None:
        raise ValueError(f"the cohort of round {secrets.place.round} is not known yet")
    return secrets.cohort


def _check_members(secrets: Secrets, nodes: tuple[str, ...], of: Collection[str], what: str) -> None:
    """Refuse a list of nodes that is too short, in all or around this node, or that has who should not be in it."""
    cohort, node = _cohort(secrets), secrets.place.node
    if node not in nodes or not set(of).issuperset(nodes):
        raise ValueError(f"this node should be among the {what}, and nobody who was not there before")
    most = max(cohort.quorum, secrets.least)
    near = len(cohort.neighbours[node].intersection(nodes)) + 1
    if len(nodes) < most or near < cohort.threshold:
        raise ValueError(
            f"{len(nodes)} {what} are too few, or {near} around this node: {most} and {cohort.threshold} are needed"
        )
