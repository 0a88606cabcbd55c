"""What a coordinator or another node may try, and what the node says to it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fedctl.secagg import coordinator, node
from fedctl.secagg.keys import Identity, fingerprint
from fedctl.secagg.messages import Agreement, Inbox, Sealed, Signed, Survivors
from fedctl.secagg.place import Place
from tests.unit.secagg import LEAST, ROUND, RUN, Played, carried, dealt, names, vectors_of


@pytest.fixture
def met():
    """Five nodes that have advertised, and their cohort."""
    return Played(names(5)).advertise().gather()


@pytest.fixture
def shared():
    return dealt(5)


@pytest.fixture
def masked():
    """Of five nodes that shared, the last dropped out."""
    return dealt(5).mask(vectors_of(names(4), 6))


def forged(advert, run=RUN, round=ROUND, **keys):
    """Another advert in a node's name, by an identity of whoever is between."""
    own = Identity.ephemeral()
    unsigned = replace(advert, identity=own.public, **keys)
    return replace(unsigned, signature=own.sign(unsigned.signed(run, round)))


def refused(reason):
    return pytest.raises(ValueError, match=reason)


# The cohort


def test_a_cohort_of_one(met):
    with refused("a cohort of one would tell its update"):
        met.gather(["n000"])


def test_a_cohort_below_what_the_owner_asks_for(met):
    with refused("has 5 nodes, and the owner asks for 6"):
        node.share(met.secrets["n000"], met.cohort, least=6)


def test_this_nodes_own_advert_swapped(met):
    met.adverts["n000"] = forged(met.adverts["n000"], mask_key=met.adverts["n000"].seal_key)
    with refused("another advert of this node"):
        node.share(met.secrets["n000"], met.gather().cohort, least=LEAST)


def test_this_node_left_out(met):
    with refused("another advert of this node"):
        node.share(met.secrets["n000"], met.gather(names(5)[1:]).cohort, least=LEAST)


@pytest.mark.parametrize("key", ["identity", "mask_key", "seal_key", "seed_digest"])
def test_another_nodes_key_swapped_under_its_identity(met, key):
    met.adverts["n001"] = replace(met.adverts["n001"], **{key: bytes(range(32))})
    with refused("signature of n001 does not hold"):
        node.share(met.secrets["n000"], met.gather().cohort, least=LEAST)


def test_another_nodes_identity_swapped_is_told_by_its_pin(met):
    pins = {name: fingerprint(advert.identity) for name, advert in met.adverts.items()}
    assert node.share(met.secrets["n000"], met.cohort, least=LEAST, pins=pins)
    met.adverts["n001"] = forged(met.adverts["n001"])
    with refused("identity of n001, SHA256:.*, is not the pinned one"):
        node.share(met.secrets["n000"], met.gather().cohort, least=LEAST, pins=pins)


def test_a_node_that_nobody_pinned(met):
    pins = {name: fingerprint(met.adverts[name].identity) for name in names(4)}
    with refused("identity of n004"):
        node.share(met.secrets["n000"], met.cohort, least=LEAST, pins=pins)


@pytest.mark.parametrize("other", [{"run": "another"}, {"round": ROUND + 1}])
def test_a_cohort_of_another_round(met, other):
    late = Played(names(5), **other, identities=met.identities).advertise().gather()
    with refused("the cohort of another round"):
        node.share(met.secrets["n000"], late.cohort, least=LEAST)


def test_an_advert_of_another_round_under_this_one(met):
    late = Played(names(5), round=ROUND + 1, identities=met.identities).advertise()
    met.adverts["n001"] = late.adverts["n001"]
    with refused("signature of n001 does not hold"):
        node.share(met.secrets["n000"], met.gather().cohort, least=LEAST)
    with refused("signature of n001 does not hold"):
        coordinator.check_advert(late.adverts["n001"].to_json(), RUN, ROUND, "n001")


def test_a_second_cohort(shared):
    with refused("round 3 has another cohort already"):
        node.share(shared.secrets["n000"], shared.gather(names(4)).cohort, least=LEAST)


@pytest.mark.parametrize("key", ["identity", "mask_key", "seal_key", "seed_digest"])
def test_one_key_for_two_nodes(met, key):
    met.adverts["n001"] = replace(met.adverts["n001"], **{key: getattr(met.adverts["n002"], key)})
    with refused(f"same {key}"):
        met.gather()


@pytest.mark.parametrize("degree", [0, 2, 10, 13, 39, 40])
def test_a_ring_that_is_too_thin_or_none(degree):
    adverts = Played(names(40)).advertise().adverts
    with refused("neighbours are not for 40 nodes|cannot be|threshold"):
        coordinator.cohort_of(RUN, ROUND, adverts.values(), degree=degree if degree < 39 else 37)


@pytest.mark.parametrize("threshold", [0, 1, 2, 6])
def test_a_threshold_of_half_or_more_than_all(met, threshold):
    with refused("threshold should be above half of 5"):
        replace(met.cohort, threshold=threshold)


def test_a_threshold_of_just_half():
    cohort = Played(names(4)).advertise().gather().cohort
    with refused("threshold should be above half of 4 holders, not 2"):
        replace(cohort, threshold=2)


def test_adverts_out_of_order_or_under_other_names(met):
    adverts = met.cohort.adverts
    swapped = {**adverts, "n000": adverts["n001"], "n001": adverts["n000"]}
    renamed = dict(zip(names(6)[1:], adverts.values(), strict=True))
    for wrong in (dict(reversed(adverts.items())), swapped, renamed):
        with refused("by name, in the order of names"):
            replace(met.cohort, adverts=wrong)


@pytest.mark.parametrize("key", ["mask_key", "seal_key"])
@pytest.mark.parametrize("small", [bytes(32), b"\1" + bytes(31)])
def test_a_key_that_agrees_with_everybody(met, key, small):
    advert = replace(met.adverts["n001"], **{key: small})
    signed = replace(advert, signature=met.identities["n001"].sign(advert.signed(RUN, ROUND)))
    with refused("small order"):
        coordinator.check_advert(signed.to_json(), RUN, ROUND, "n001")


def test_an_advert_under_another_name(met):
    with refused("the advert of n001"):
        coordinator.check_advert(met.adverts["n001"].to_json(), RUN, ROUND, "n002")
    renamed = replace(met.adverts["n001"], node="n002")
    with refused("signature of n002 does not hold"):
        coordinator.check_advert(renamed.to_json(), RUN, ROUND, "n002")
    met.adverts["n002"] = renamed
    with refused("signature of n002 does not hold"):
        node.share(met.secrets["n000"], met.gather(["n000", "n002", "n003"]).cohort, least=LEAST)


# The shares


def test_tampered_sealed_bytes(shared):
    inbox = shared.inbox("n000")
    for at in (0, 33, 66, 81):
        sealed = bytearray(inbox.shares["n001"])
        sealed[at] ^= 1
        with refused("the share of n001: it is not what was sealed"):
            node.receive(shared.secrets["n000"], replace(inbox, shares={**inbox.shares, "n001": bytes(sealed)}))


@pytest.mark.parametrize("other", [{"run": "another"}, {"round": ROUND + 1}])
def test_shares_of_another_round(shared, other):
    late = Played(names(5), **other, identities=shared.identities).advertise().gather().deal()
    with refused("not what was sealed"):
        node.receive(shared.secrets["n000"], late.inbox("n000"))


def test_shares_of_another_cohort_of_the_same_keys():
    one, other = (Played(names(5)).advertise() for _ in range(2))
    other.identities, other.secrets, other.adverts = one.identities, dict(one.secrets), dict(one.adverts)
    one.gather().deal()
    other.gather(names(4)).deal()
    inbox = one.inbox("n000")
    with refused("the share of n001: it is not what was sealed"):
        node.receive(one.secrets["n000"], replace(inbox, shares={**inbox.shares, **other.inbox("n000").shares}))


def test_shares_of_another_peer_and_for_another_peer(shared):
    inbox = shared.inbox("n000")
    swapped = {**inbox.shares, "n001": inbox.shares["n002"], "n002": inbox.shares["n001"]}
    for_another = {**inbox.shares, "n001": shared.sealed["n001"].shares["n002"]}
    own = {**inbox.shares, "n001": shared.sealed["n000"].shares["n001"]}
    for shares in (swapped, for_another, own):
        with refused("not what was sealed"):
            node.receive(shared.secrets["n000"], replace(inbox, shares=shares))


def test_shares_that_are_missing_or_too_many(shared):
    inbox = shared.inbox("n000")
    fewer = {name: share for name, share in inbox.shares.items() if name != "n003"}
    for shares in (fewer, {**inbox.shares, "n009": inbox.shares["n003"]}, {**inbox.shares, "n000": bytes(82)}):
        with refused("a share of each neighbour that sent one, and no other"):
            node.receive(shared.secrets["n000"], replace(inbox, shares=shares))


def test_sharers_that_are_not_of_the_cohort_or_without_this_node(shared):
    inbox = shared.inbox("n000")
    for sharers in (names(5)[1:], names(6)):
        with refused("this node should be among the sharers"):
            node.receive(shared.secrets["n000"], replace(inbox, sharers=tuple(sharers)))


def test_second_sharers(shared):
    received = node.receive(shared.secrets["n000"], shared.inbox("n000"))
    del shared.sealed["n004"]
    with refused("round 3 has other sharers already"):
        node.receive(received, shared.inbox("n000"))


def test_second_shares_of_the_same_sharers(met):
    begun = met.secrets["n001"]
    met.deal()
    received = node.receive(met.secrets["n000"], met.inbox("n000"))
    _, met.sealed["n001"] = node.share(begun, met.cohort, least=LEAST)
    with refused("round 3 has other shares already"):
        node.receive(received, met.inbox("n000"))


def test_fewer_sharers_than_the_owner_asks_for(met):
    met.secrets["n000"], sealed = node.share(met.secrets["n000"], met.cohort, least=5)
    met.deal(names(4)[1:])
    met.sealed["n000"] = sealed
    with refused("4 sharers are too few, or 4 around this node: 5 and 4 are needed"):
        node.receive(met.secrets["n000"], met.inbox("n000"))


def test_a_node_that_seals_for_some_only(shared):
    shares = dict(shared.sealed["n001"].shares)
    for wrong in ({**shares, "n009": shares["n000"]}, {name: shares[name] for name in list(shares)[1:]}):
        with refused("a share for each neighbour, and no other"):
            coordinator.check_sealed(Sealed(shares=wrong).to_json(), shared.cohort, "n001")


# The mask


def test_a_second_vector_under_the_same_masks(masked):
    vector = np.zeros(6, np.uint32)
    with refused("masked already: its masks are for one vector"):
        node.mask(masked.secrets["n000"], vector)
    assert not vector.any()
    with refused("masked already"):
        node.receive(masked.secrets["n000"], masked.inbox("n000"))


def test_a_vector_before_the_shares(met, shared):
    with refused("cohort of round 3 is not known yet"):
        node.mask(met.secrets["n000"], np.zeros(6, np.uint32))
    with refused("who shared in round 3 is not known yet"):
        node.mask(shared.secrets["n000"], np.zeros(6, np.uint32))


@pytest.mark.parametrize("wrong", [np.zeros(6, np.int32), np.zeros(6, ">u4"), np.zeros((2, 3), np.uint32)])
def test_what_is_no_vector(shared, wrong):
    received = node.receive(shared.secrets["n000"], shared.inbox("n000"))
    with refused("a vector is flat"):
        node.mask(received, wrong)


# The survivors


def survivors(*nodes):
    return Survivors(nodes=nodes)


def test_second_survivors(masked):
    masked.agree()
    fewer = survivors(*masked.survivors, "n004")
    with refused("round 3 has other survivors already"):
        node.survived(masked.secrets["n000"], masked.identities["n000"], fewer)
    with refused("not the survivors that this node signed"):
        node.unmask(masked.secrets["n000"], Agreement(nodes=fewer.nodes, signatures=masked.signatures))


def test_survivors_that_cannot_be(masked):
    secrets, identity = masked.secrets["n000"], masked.identities["n000"]
    for nodes, reason in (
        (("n001", "n002", "n003", "n004"), "this node should be among the survivors"),
        (("n000", "n001", "n002", "n003", "n007"), "nobody who was not there before"),
        (("n000",), "1 survivors are too few"),
        (("n000", "n001", "n002"), "3 survivors are too few"),
    ):
        with refused(reason):
            node.survived(secrets, identity, survivors(*nodes))


def test_survivors_around_this_node_count_too():
    """On a ring, a list that is long enough may still leave a node alone among those who dropped out."""
    everybody = names(40)
    played = dealt(40, share=0.55, degree=14).mask(vectors_of(everybody, 3))
    near = sorted(played.cohort.neighbours["n000"])
    alive = sorted({*everybody} - {*near[:7]})
    assert len(alive) >= played.cohort.quorum
    with refused("33 survivors are too few, or 8 around this node: 24 and 9 are needed"):
        node.survived(played.secrets["n000"], played.identities["n000"], survivors(*alive))


def test_fewer_survivors_than_the_owner_asks_for():
    played = Played(names(5), share=0.6).advertise().gather()
    played.secrets["n000"], sealed = node.share(played.secrets["n000"], played.cohort, least=5)
    played.deal(names(5)[1:])
    played.sealed["n000"] = sealed
    played.mask(vectors_of(names(4), 3))
    with refused("4 survivors are too few, or 4 around this node: 5 and 3 are needed"):
        node.survived(played.secrets["n000"], played.identities["n000"], survivors(*played.survivors))


def test_survivors_before_the_mask(shared):
    received = node.receive(shared.secrets["n000"], shared.inbox("n000"))
    for secrets in (shared.secrets["n000"], received):
        with refused("nothing was masked in round 3 yet"):
            node.survived(secrets, shared.identities["n000"], survivors(*names(5)))


def test_an_identity_that_changed_meanwhile(masked):
    with refused("begun with another identity"):
        node.survived(masked.secrets["n000"], Identity.ephemeral(), survivors(*masked.survivors))


# The unmasking


def test_both_secrets_of_one_node(masked):
    """Whatever it is told, a node reveals of each other node one secret."""
    masked.agree().unmask()
    for name, told in masked.revealed.items():
        assert set(told.seeds) == set(masked.survivors)
        assert set(told.keys) == {"n004"}
        split = Agreement(nodes=(*masked.survivors, "n004"), signatures=masked.signatures)
        with refused("not the survivors that this node signed"):
            node.unmask(masked.secrets[name], split)


def test_nothing_is_revealed_before_it_is_signed(masked):
    with refused("not the survivors that this node signed"):
        node.unmask(masked.secrets["n000"], Agreement(nodes=masked.survivors, signatures={}))


def test_too_few_signatures(masked):
    masked.agree(names(3))
    with refused("3 signed who survived, and 4 must"):
        node.unmask(masked.secrets["n000"], masked.agreement())


def test_signatures_that_do_not_hold(masked):
    masked.agree()
    good = masked.signatures
    words = masked.cohort.agreed(masked.sharers, masked.survivors)
    others = masked.cohort.agreed(masked.sharers, tuple(names(5)))
    fewer = masked.cohort.agreed(masked.survivors, masked.survivors)
    by_another_cohort = Played(names(5), identities=masked.identities).advertise().gather().cohort
    for signer, signature in (
        ("n001", bytes(64)),
        ("n001", good["n002"]),
        ("n001", Identity.ephemeral().sign(words)),
        ("n001", masked.identities["n001"].sign(others)),
        ("n001", masked.identities["n001"].sign(fewer)),
        ("n001", masked.identities["n001"].sign(by_another_cohort.agreed(masked.sharers, masked.survivors))),
        ("n004", masked.identities["n004"].sign(words)),
        ("n009", good["n002"]),
    ):
        with refused(f"signature of {signer} on the survivors does not hold"):
            node.unmask(
                masked.secrets["n000"], Agreement(nodes=masked.survivors, signatures={**good, signer: signature})
            )
        if signer in masked.survivors:
            with refused("does not hold"):
                masked.checked(signer, Signed(signature=signature))


def test_a_node_that_reveals_what_it_was_not_asked_for(masked):
    masked.agree().unmask()
    good = masked.revealed["n000"]
    for wrong in (
        replace(good, seeds={**good.seeds, "n004": good.keys["n004"]}),
        replace(good, keys={}),
        replace(good, keys={**good.keys, "n001": good.seeds["n001"]}),
        replace(good, seeds={**good.seeds, "n001": b"\xff" * 33}),
    ):
        with refused("one share of each neighbour|below the prime"):
            coordinator.check_revealed(wrong.to_json(), masked.cohort, "n000", masked.sharers, masked.survivors)


# The forms


def test_messages_come_back_from_json_and_nothing_else_does(masked):
    masked.agree().unmask()
    for record in (
        Place(run=RUN, round=ROUND, node="n000"),
        masked.adverts["n000"],
        masked.cohort,
        masked.sealed["n000"],
        masked.inbox("n000"),
        survivors(*masked.survivors),
        masked.agreement(),
        masked.revealed["n000"],
        masked.secrets["n000"],
        dealt(2).secrets["n000"],
    ):
        form = json.loads(json.dumps(record.to_json()))
        assert carried(record) == record
        for name in form:
            for wrong in (
                {**form, "more": 1},
                {key: value for key, value in form.items() if key != name},
                {**form, name: 1.5},
                {**form, name: "é"},
                {**form, name: ["a", "a"]},
                {**form, name: {"../x": "AA=="}},
                {**form, name: {"n000": "AA=="}},
            ):
                with pytest.raises(ValueError):
                    type(record).from_json(wrong)


def test_names_come_in_order_each_once():
    for nodes in (["b", "a"], ["a", "a"], ["a", 1], ["../a"], [f"n{n:05d}" for n in range(10_001)]):
        with refused("order|name of a node|at most"):
            Survivors.from_json({"nodes": nodes})


def test_bytes_have_one_form():
    whole = "A" * 110 + "=="
    inbox = {"sharers": ["a"], "shares": {"a": whole}}
    assert Inbox.from_json(inbox).shares == {"a": bytes(82)}
    for wrong in ("A" * 109 + "B==", "A" * 112, "A" * 106 + "==", "A" * 109 + "\n==", whole + "\n", None, 7):
        with refused("82 bytes in base64"):
            Inbox.from_json({"sharers": ["a"], "shares": {"a": wrong}})


def test_the_shares_that_are_of_no_use_for_the_survivors_are_forgotten():
    """Who gets hold of all books later can make no mask of a survivor of them, nor the self seed of who dropped out."""
    played = dealt(4)
    alive = names(4)[:3]
    for name in alive:
        vector = np.zeros(5, "<u4")
        secrets = node.mask(node.receive(played.secrets[name], played.inbox(name)), vector)
        secrets, _ = node.survived(secrets, played.identities[name], Survivors(nodes=tuple(alive)))
        assert set(secrets.seeds) == set(alive)
        assert set(secrets.keys) == {names(4)[3]}
