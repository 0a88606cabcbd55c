"""The parts of secure aggregation one by one: shares, the graph, keys, masks, and fixed point."""

import math
import random
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl.secagg import shamir
from fedctl.secagg.graph import COMPLETE, degree_for, fewest, neighbours, threshold_for
from fedctl.secagg.keys import Identity, Pair, agreed, fingerprint, is_signed, public_of, read_pins, seal, unseal
from fedctl.secagg.masks import BLOCK, add_keystreams
from fedctl.secagg.place import Place, bound
from fedctl.secagg.ring import Scale
from tests.unit.secagg import names

# Shares


@given(data=st.data(), secret=st.binary(min_size=32, max_size=32))
@settings(max_examples=50, deadline=None)
def test_any_so_many_shares_tell_the_secret(data, secret):
    points = data.draw(st.lists(st.integers(1, 10_000), min_size=1, max_size=12, unique=True))
    threshold = data.draw(st.integers(1, len(points)))
    shares = shamir.split(secret, threshold, points)
    some = data.draw(st.permutations(points))
    told = {point: shares[point] for point in some[:threshold]}
    assert shamir.combine(told, threshold) == secret
    assert all(
        shamir.value_at(point, told, threshold) == int.from_bytes(share, "big") for point, share in shares.items()
    )


def test_fewer_shares_fit_every_secret():
    """With one share less, there is a polynomial through them for any secret there is."""
    shares = shamir.split(bytes(32), 3, [1, 2, 3])
    two = {1: shares[1], 2: shares[2]}
    for secret in (0, 1, 2**256 - 1):
        line = {**two, 9: bytes(33)}
        at_zero = {0: secret.to_bytes(33, "big"), 1: shares[1], 2: shares[2]}
        line[9] = shamir.value_at(9, at_zero, 3).to_bytes(33, "big")
        assert shamir.combine(line, 3) == secret.to_bytes(32, "big")
    with pytest.raises(ValueError, match="3 shares are needed, not 2"):
        shamir.combine(two, 3)


def test_a_share_alone_is_drawn_from_all_numbers():
    """The share at 1 of the same secret, by its leading bits: 64 bins, 63 expected, 140 is 6.9 deviations above."""
    chance = random.Random(5)
    shares = [shamir.split(bytes(32), 2, [1, 2], chance.randrange)[1] for _ in range(6400)]
    seen = np.bincount([int.from_bytes(share, "big") >> 250 for share in shares], minlength=64)
    assert ((seen - 100) ** 2 / 100).sum() < 140


def test_the_modulus_is_a_prime():
    """Miller-Rabin with forty fixed bases; a composite passes with a chance below 4^-40."""
    odd, twos = shamir.PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        powers = [pow(base, odd << step, shamir.PRIME) for step in range(twos + 1)]
        assert powers[-1] == 1
        assert powers[0] == 1 or shamir.PRIME - 1 in powers


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [(bytes(31), 2, [1, 2]), (bytes(32), 0, [1]), (bytes(32), 3, [1, 2]), (bytes(32), 2, [1, 1]), (bytes(32), 1, [0])],
)
def test_what_cannot_be_split(secret, threshold, points):
    with pytest.raises(ValueError):
        shamir.split(secret, threshold, points)


@pytest.mark.parametrize("share", [b"", bytes(32), bytes(34), b"\xff" * 33, shamir.PRIME.to_bytes(33, "big")])
def test_what_is_no_share(share):
    with pytest.raises(ValueError, match="below the prime"):
        shamir.a_share(share)


# The graph


@given(count=st.integers(2, 120), seed=st.binary(max_size=8), extra=st.integers(0, 10))
@settings(max_examples=40, deadline=None)
def test_a_neighbours_neighbour_is_oneself(count, seed, extra):
    degree = min(fewest(count) + 2 * extra, count - 1)
    found = neighbours(names(count), seed, degree)
    assert sorted(found) == names(count)
    for node, near in found.items():
        assert node not in near
        assert len(near) == degree
        assert all(node in found[other] for other in near)


def test_the_ring_is_in_the_seeds_order():
    one, other = (neighbours(names(50), seed, 12) for seed in (b"a", b"b"))
    assert one != other
    assert one == neighbours(names(50)[::-1], b"a", 12)
    near_by_name = sum(abs(int(a[1:]) - int(b[1:])) <= 6 for a, near in one.items() for b in near)
    assert near_by_name < 300  # of 600; 147 are expected, and on the ring of names all


def test_ten_nodes_that_drop_out_together_by_name_do_not_matter():
    """Were the ring in the order of names, a node amid the ten would keep 11 of its 21 holders, and 12 are needed."""
    everybody, degree = names(60), 20
    needed = threshold_for(0.55, degree + 1)
    alive = set(everybody[:20] + everybody[30:])
    for seed in range(100):
        found = neighbours(everybody, bytes([seed]), degree)
        assert all(len(near & alive) + (node in alive) >= needed for node, near in found.items())


@pytest.mark.parametrize("degree", [0, 3, 50, 51, -2])
def test_a_graph_that_cannot_be(degree):
    with pytest.raises(ValueError, match="50 nodes cannot have"):
        neighbours(names(50), b"", degree)


@pytest.mark.parametrize(("nodes", "degree"), [(2, 1), (32, 31), (33, 14), (100, 30), (300, 44), (1000, 56)])
def test_how_many_neighbours_there_should_be(nodes, degree):
    assert degree_for(nodes, 2 / 3) == degree


def test_the_degree_is_enough_where_a_tenth_drops_out():
    """Of forty graphs of 100 nodes with ten dropouts each, none leaves a secret that cannot be told."""
    degree, chance = degree_for(100, 2 / 3), random.Random(2)
    threshold = threshold_for(2 / 3, degree + 1)
    for number in range(40):
        alive = set(chance.sample(names(100), 90))
        found = neighbours(names(100), bytes([number]), degree)
        assert all(len(near & alive) + (node in alive) >= threshold for node, near in found.items())


@given(share=st.floats(0.01, 1), holders=st.integers(2, 2000))
def test_a_threshold_is_more_than_half(share, holders):
    threshold = threshold_for(share, holders)
    assert holders < 2 * threshold <= 2 * holders
    assert threshold >= share * holders - 1e-6


def test_a_share_of_holders_is_a_share():
    assert threshold_for(0.6, 5) == 3
    assert threshold_for(2 / 3, 9) == 6
    assert threshold_for(0.56, 25) == 14  # 14.000000000000002 in floats
    for wrong in (0, -1, 1.1, math.nan):
        with pytest.raises(ValueError, match="share of holders"):
            threshold_for(wrong, 5)
    assert fewest(COMPLETE) == 31


# Keys


def test_an_identity_is_an_openssh_key(tmp_path):
    made = tmp_path / "made"
    identity = Identity.create(made)
    assert made.stat().st_mode & 0o777 == 0o600
    for path in (made, made.with_name("made.pub")):
        said = subprocess.run(["ssh-keygen", "-lf", path], capture_output=True, text=True, check=True).stdout
        assert said.split()[:2] == ["256", identity.fingerprint]
    assert Identity.load(made).public == identity.public
    with pytest.raises(FileExistsError):
        Identity.create(made)


def test_ssh_keygens_key_is_an_identity(tmp_path):
    path = tmp_path / "identity"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    identity = Identity.load(path)
    said = subprocess.run(["ssh-keygen", "-lf", path], capture_output=True, text=True, check=True).stdout
    assert said.split()[1] == identity.fingerprint == fingerprint(identity.public)
    assert is_signed(identity.public, identity.sign(b"words"), b"words")
    assert not is_signed(identity.public, identity.sign(b"words"), b"other words")
    assert not is_signed(b"short", identity.sign(b"words"), b"words")
    path.chmod(0o640)
    with pytest.raises(ValueError, match="others may read"):
        Identity.load(path)


@pytest.mark.parametrize("options", [("-t", "ecdsa", "-N", ""), ("-t", "ed25519", "-N", "a passphrase", "-a", "1")])
def test_other_keys_are_no_identity(tmp_path, options):
    path = tmp_path / "identity"
    subprocess.run(["ssh-keygen", "-q", *options, "-f", path], check=True)
    with pytest.raises(ValueError, match=r"ssh-keygen -t ed25519|without a passphrase"):
        Identity.load(path)


def test_what_is_no_key_is_no_identity(tmp_path):
    path = tmp_path / "identity"
    path.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n")
    path.chmod(0o600)
    with pytest.raises(ValueError, match="no OpenSSH private key"):
        Identity.load(path)


def test_pins_are_lines_of_names_and_fingerprints():
    one, other = (Identity.ephemeral().fingerprint for _ in range(2))
    assert read_pins(f"# ours\nalice {one}\n\n  bob\t{other}  # by telephone\n") == {"alice": one, "bob": other}
    for wrong in (f"alice {one}\nalice {other}", "alice", f"alice {one} x", f"../a {one}", "alice MD5:00", f"{one}"):
        with pytest.raises(ValueError):
            read_pins(wrong)


def test_both_sides_agree_for_one_purpose():
    one, other = Pair.new(), Pair.new()
    assert agreed(one.private, other.public, b"x") == agreed(other.private, one.public, b"x")
    assert agreed(one.private, other.public, b"x") != agreed(one.private, other.public, b"y")
    assert public_of(one.private) == one.public
    assert repr(one.private) not in repr(one)


def test_a_seal_opens_for_its_way_alone():
    one, other, third = Pair.new(), Pair.new(), Pair.new()
    sealed = seal(one.private, other.public, b"words", b"way")
    assert unseal(other.private, one.public, sealed, b"way") == b"words"
    for private, public, info in (
        (other.private, one.public, b"back"),
        (third.private, one.public, b"way"),
        (other.private, third.public, b"way"),
    ):
        with pytest.raises(ValueError, match="not what was sealed"):
            unseal(private, public, sealed, info)


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_bound_bytes_say_one_thing(one, other):
    assert (bound(*one) == bound(*other)) == (one == other)
    place = Place(run="r", round=1, node="n")
    assert place.bound("x", *one) != place.bound("y", *one)


# Masks


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("width", [0, 1, 7, BLOCK // 8, BLOCK + 3])
def test_what_is_added_is_taken_again(bits, width):
    first, second = bytes(32), bytes(range(32))
    vector = np.arange(width, dtype=f"u{bits // 8}")
    add_keystreams(vector, added=[first], taken=[second])
    assert width < 7 or not np.array_equal(vector, np.arange(width, dtype=vector.dtype))
    add_keystreams(vector, added=[second])
    add_keystreams(vector, taken=[first])
    np.testing.assert_array_equal(vector, np.arange(width, dtype=vector.dtype))


def test_every_element_of_a_small_ring_is_drawn_as_often():
    """Chi-square over all 65,536 elements: deviation 362, 2,000 is 5.5 of them; the last element comes too."""
    vector = np.zeros(6_553_600, np.uint16)
    add_keystreams(vector, added=[bytes(range(32))])
    seen = np.bincount(vector, minlength=1 << 16)
    assert abs(((seen - 100) ** 2 / 100).sum() - 65_535) < 2000
    assert seen[-1] > 50


@pytest.mark.parametrize("bit", range(0, 256, 5))
def test_every_bit_of_a_key_counts(bit):
    """None is folded away: the streams of two keys that differ in one bit differ in half of their bits."""
    streams = []
    for key in (bytes(32), (1 << bit).to_bytes(32, "big")):
        vector = np.zeros(4096, np.uint32)
        add_keystreams(vector, added=[key])
        streams.append(vector)
    differing = np.bitwise_count(streams[0] ^ streams[1]).sum() / (4096 * 32)
    assert abs(differing - 0.5) < 0.01


# Fixed point


@given(
    data=st.data(),
    cohort=st.integers(1, 300),
    bits=st.sampled_from([16, 32, 64]),
    range=st.floats(1e-6, 1e6),
    sign=st.sampled_from([-1.0, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_no_sum_overflows(data, cohort, bits, range, sign):
    """Everybody at the end of the range, or beyond it: the sum of their elements is that of as many whole numbers."""
    scale = Scale.of(range, cohort, bits=bits)
    values = np.array([range * sign, range * sign * data.draw(st.floats(1, 1e6)), 0.0])
    element, _ = scale.encode(values, key=bytes(32))
    levels = element.view(f"i{bits // 8}").astype(np.int64)
    assert abs(levels[0]) in {scale.levels, scale.levels - 1}  # range / step may come out a hair below
    assert list(levels[1:]) in ([levels[0], 0], [sign * scale.levels, 0])
    total = element * np.array(cohort, element.dtype)
    np.testing.assert_array_equal(scale.decode(total), cohort * levels * scale.step)


@given(seed=st.integers(0, 2**31), cohort=st.integers(1, 40), bits=st.sampled_from([16, 32, 64]))
@settings(max_examples=30, deadline=None)
def test_a_sum_is_off_by_less_than_a_step_each(seed, cohort, bits):
    chance, scale = np.random.default_rng(seed), Scale.of(2.0, cohort, bits=bits)
    values = chance.uniform(-2, 2, (cohort, 50)).astype(np.float32)
    total = np.zeros(50, scale.dtype)
    for row in values:
        elements, beyond = scale.encode(row)
        assert beyond == 0
        total += elements
    assert (np.abs(scale.decode(total) - values.sum(0, dtype=np.float64)) < cohort * scale.step).all()


def test_rounding_is_right_on_average():
    """The mean of 400,000 roundings up with chance p has a deviation of sqrt(p (1 - p) / 400,000); six are allowed."""
    scale = Scale.of(1.0, 1, bits=32, level_bits=8)
    for part in (0.001, 0.25, 0.5, 0.75, 0.9993):
        for level in (-127, -3, 0, 126):
            values = np.full(400_000, (level + part) * scale.step)
            elements, beyond = scale.encode(values, key=bytes([1]) * 32)
            steps = elements.view(np.int32)
            assert set(np.unique(steps)) <= {level, level + 1}
            allowed = 6 * math.sqrt(part * (1 - part) / len(values)) + 1e-6
            assert abs(steps.mean() - (level + part)) < allowed
            assert beyond == 0


def test_levels_are_kept_exactly():
    scale = Scale.of(127.0, 100, bits=16, level_bits=8)
    values = np.arange(-127, 128, dtype=np.float32)
    elements, beyond = scale.encode(values)
    assert (elements.dtype, beyond, scale.step) == (np.uint16, 0, 1.0)
    np.testing.assert_array_equal(scale.decode(elements, np.float32), values)


def test_int8_fits_sixteen_bits_for_258_nodes_and_no_more():
    assert Scale.of(1.0, 258, bits=16, level_bits=8).levels == 127
    with pytest.raises(ValueError, match="259 times 127 levels does not fit 16 bits"):
        Scale.of(1.0, 259, bits=16, level_bits=8)


def test_what_is_beyond_the_range_is_counted():
    scale = Scale.of(1.0, 3)
    values = np.array([1.0, -1.0, 1.0000001, -5.0, 0.3] * 20_000, np.float32)
    out = np.empty(len(values), scale.dtype)
    elements, beyond = scale.encode(values, out=out)
    assert elements is out
    assert beyond == 40_000
    assert Scale.from_json(scale.to_json()) == scale


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused(value):
    values = np.zeros(70_000, np.float32)
    values[69_999] = value
    with pytest.raises(ValueError, match="not finite"):
        Scale.of(1.0, 3).encode(values)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"bits": 8}, "16, 32 or 64 bits"),
        ({"range": 0.0}, "finite range above 0"),
        ({"range": math.inf}, "finite range above 0"),
        ({"range": math.nan}, "finite range above 0"),
        ({"range": 5e-324}, "steps"),
        ({"cohort": 0}, "at least one"),
        ({"cohort": 40_000}, "does not fit 16 bits"),
        ({"level_bits": 1}, "does not fit"),
    ],
)
def test_a_scale_that_cannot_be(options, reason):
    with pytest.raises(ValueError, match=reason):
        Scale.of(**{"range": 1.0, "cohort": 10, "bits": 16, **options})


def test_elements_of_another_ring_are_refused():
    with pytest.raises(ValueError, match="elements of 32 bits"):
        Scale.of(1.0, 3).decode(np.zeros(3, np.uint16))


def test_nothing_is_nothing():
    elements, beyond = Scale.of(1.0, 3).encode(np.zeros(0, np.float32))
    assert (len(elements), beyond) == (0, 0)
