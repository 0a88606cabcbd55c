"""Whoever drops out, and whenever: the sum of the vectors that came is exact, or there is none."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedctl.secagg import node
from fedctl.secagg.coordinator import unmask_sum
from fedctl.secagg.unmasking import FalseShares, NotEnough
from tests.unit.secagg import Played, dealt, names, vectors_of

QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}


def plain(vectors, who):
    first, *rest = (vectors[name] for name in who)
    total = first.copy()
    for vector in rest:
        total += vector
    return total


@st.composite
def falling(draw, names):
    """For each phase, who is still there."""
    left = [names]
    for _ in range(5):
        gone = draw(st.sets(st.sampled_from(names), max_size=max(1, len(names) // 3)))
        left.append([name for name in left[-1] if name not in gone])
    return left[1:]


@given(data=st.data(), count=st.integers(2, 9), width=st.integers(1, 40), bits=st.sampled_from([16, 32, 64]))
@settings(max_examples=50, **QUIET)
def test_the_sum_is_exact_or_refused_whoever_drops_out(data, count, width, bits):
    share = data.draw(st.sampled_from([0.1, 0.5, 0.6, 2 / 3, 0.9, 1.0]))
    advertised, shared, masked, signed, revealed = data.draw(falling(names(count)))
    played = Played(names(count), share=share).advertise()
    if len(advertised) < 2:
        with pytest.raises(ValueError, match="cohort of one"):
            played.gather(advertised)
        return
    played.gather(advertised).deal(shared)
    needed = played.cohort.threshold
    assert needed > len(advertised) / 2
    assert needed == played.cohort.quorum
    vectors = vectors_of(masked, width, bits)
    if len(shared) < needed:
        for name in shared:
            with pytest.raises(ValueError, match="sharers are too few"):
                node.receive(played.secrets[name], played.inbox(name))
        return
    played.mask(vectors)
    if len(masked) < needed:
        for name in masked:
            with pytest.raises(ValueError, match="survivors are too few"):
                played.agree([name])
        return
    played.agree(signed)
    if len(signed) < needed:
        for name in signed:
            with pytest.raises(ValueError, match=f"{len(signed)} signed who survived"):
                node.unmask(played.secrets[name], played.agreement())
        return
    played.unmask(revealed)
    if len(revealed) < needed:
        with pytest.raises(NotEnough) as caught:
            played.total()
        assert set(caught.value.nodes) == set(shared)
        assert not isinstance(caught.value, FalseShares), "others may come"
    else:
        np.testing.assert_array_equal(played.total(), plain(vectors, masked))


@given(data=st.data())
@settings(max_examples=2, **QUIET)
def test_the_sum_is_exact_on_a_ring_of_neighbours(data):
    everybody = names(36)
    gone = data.draw(st.lists(st.sampled_from(everybody), min_size=4, max_size=4, unique=True))
    played = Played(everybody, share=0.55, degree=14).advertise().gather()
    assert (played.cohort.threshold, played.cohort.quorum) == (9, 22)
    left = [[name for name in everybody if name not in gone[:number]] for number in range(1, 5)]
    vectors = vectors_of(left[1], 11)
    played.deal(left[0]).mask(vectors).agree(left[2]).unmask(left[3])
    np.testing.assert_array_equal(played.total(), plain(vectors, left[1]))


def test_every_step_but_the_mask_answers_the_same_once_more():
    played = dealt(3).mask(vectors_of(names(2), 5)).agree()
    secrets = played.secrets["n000"]
    assert node.share(secrets, played.cohort, least=2) == (secrets, played.sealed["n000"])
    before = dealt(3)
    received = node.receive(before.secrets["n001"], before.inbox("n001"))
    assert node.receive(received, before.inbox("n001")) == received
    assert node.unmask(secrets, played.agreement()) == node.unmask(secrets, played.agreement())


def test_masks_are_forgotten_with_all_that_made_them():
    played = dealt(3)
    private = played.secrets["n000"].private
    played.mask(vectors_of(names(3), 5))
    kept = str(played.secrets["n000"].to_json())
    assert all(one not in kept for one in private.to_json().values())


def test_secrets_are_not_shown():
    played = dealt(2)
    for name in names(2):
        secrets = played.secrets[name]
        shown = repr(secrets)
        hidden = (secrets.private.seed, secrets.private.mask_key, secrets.private.seal_key, *secrets.seeds.values())
        assert all(repr(one) not in shown for one in hidden)


@pytest.mark.parametrize("liars", [1, 2, 3])
def test_shares_that_lie_are_got_around(liars):
    played = dealt(10, share=0.6)
    vectors = vectors_of(names(9), 6)
    played.mask(vectors).agree().unmask()
    for liar in names(liars):
        told = played.revealed[liar]
        told.seeds["n005"] = bytes(32) + b"\7"
        told.keys["n009"] = told.seeds["n006"]
    np.testing.assert_array_equal(played.total(), plain(vectors, names(9)))


def test_who_lied_once_is_asked_last():
    """Of ten shares the six that are right are one draw in 210: whoever lied about n000 shows who lies about others."""
    played = dealt(10, share=0.6)
    vectors = vectors_of(names(10), 6)
    played.mask(vectors).agree().unmask()
    for name in names(10):
        for liar in ("n000" if name == "n000" else "n002", "n001", "n004", "n005"):
            played.revealed[liar].seeds[name] = bytes(33)
    np.testing.assert_array_equal(played.total(), plain(vectors, names(10)))


def test_too_many_lies_name_whose_secret_is_missing():
    played = dealt(5, share=0.6)
    played.mask(vectors_of(names(5), 6)).agree().unmask()
    for liar in names(3):
        played.revealed[liar].seeds["n003"] = bytes(33)
    with pytest.raises(FalseShares, match="unmask n003, of 3 that are needed") as caught:
        played.total()
    assert caught.value.nodes == ("n003",)


def test_a_lie_is_laid_at_its_holders_door():
    played = dealt(5, share=0.6)
    played.mask(vectors_of(names(5), 6)).agree().unmask()
    played.revealed["n001"].seeds["n000"] = bytes(33)
    for liar in names(3):
        played.revealed[liar].seeds["n003"] = bytes(33)
    with pytest.raises(NotEnough, match="those of n001 lie"):
        played.total()


def test_a_masked_vector_of_zeros_and_a_sum_that_misses_one_mask_look_like_noise():
    """Chi-square over 256 bins of the top byte: 255 expected, 400 is 6.4 standard deviations above."""
    zeros = {name: np.zeros(200_000, np.uint32) for name in names(4)}
    played = dealt(4).mask(zeros)
    partial = played.masked["n000"] + played.masked["n001"]
    for vector in (*played.masked.values(), partial):
        seen = np.bincount(vector >> 24, minlength=256)
        expected = len(vector) / 256
        assert ((seen - expected) ** 2 / expected).sum() < 400


def test_vectors_that_are_not_alike_are_refused():
    played = dealt(3).mask(vectors_of(names(3), 5)).agree().unmask()
    first, second, third = played.masked.values()
    for vectors, reason in (
        ([first, second[:4], third], "of one length"),
        ([first, second, third.astype(np.uint64)], "of one length"),
        ([first.astype(np.float32), second, third], "flat"),
        ([first.reshape(1, -1), second, third], "flat"),
        ([first, second], "2 vectors of 3"),
        ([first, second, third, third], "4 vectors of 3"),
        ([], "0 vectors of 3"),
    ):
        with pytest.raises(ValueError, match=reason):
            unmask_sum(played.cohort, played.sharers, played.survivors, vectors, played.revealed)
