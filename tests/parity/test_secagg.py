"""Secure aggregation's masks once more, from the standards alone: RFC 7748, RFC 5869, FIPS 197 and SP 800-38A.

Nothing of the library that fedctl uses is in the second way: whole numbers, `hmac` and `hashlib` are enough. Flower's
masks, from its own environment (`make test` installs it), stand beside.
"""

import hashlib
import hmac
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedctl.secagg import node
from fedctl.secagg.keys import agreed, derived, public_of
from fedctl.secagg.masks import add_keystreams
from tests.unit.secagg import dealt, names, vectors_of

P = 2**255 - 19


def x25519(scalar: bytes, point: bytes) -> bytes:
    """RFC 7748, section 5."""
    k = int.from_bytes(scalar, "little") & ~7 & (2**255 - 1) | 2**254
    x1 = int.from_bytes(point, "little") & (2**255 - 1)
    x2, z2, x3, z3 = 1, 0, x1, 1
    for at in range(254, -1, -1):
        if bit := k >> at & 1:
            x2, x3, z2, z3 = x3, x2, z3, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % P, b * b % P, d * a, c * b
        e = aa - bb
        x3, z3 = pow(da + cb, 2, P), x1 * pow(da - cb, 2, P) % P
        x2, z2 = aa * bb % P, e * (aa + 121665 * e) % P
        if bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


def hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869, of one block, without salt."""
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\1", "sha256")


def doubled(a: int) -> int:
    return a << 1 ^ (0x11B if a & 0x80 else 0)


def times(a: int, b: int) -> int:
    """The product in FIPS 197's field."""
    product = 0
    while b:
        product, a, b = product ^ (a if b & 1 else 0), doubled(a), b >> 1
    return product


def sbox() -> list[int]:
    """FIPS 197, section 5.1.1."""
    table = [0x63]
    for value in range(1, 256):
        inverse = next(other for other in range(256) if times(value, other) == 1)
        turned = [inverse << turn | inverse >> (8 - turn) for turn in range(5)]
        table.append((turned[0] ^ turned[1] ^ turned[2] ^ turned[3] ^ turned[4]) & 0xFF ^ 0x63)
    return table


SBOX = sbox()


def round_keys(key: bytes) -> list[bytes]:
    """FIPS 197, section 5.2, for 256 bits."""
    words = [key[at : at + 4] for at in range(0, 32, 4)]
    constant = 1
    for at in range(8, 60):
        word = words[-1]
        if at % 8 == 0:
            word = bytes(SBOX[byte] for byte in word[1:] + word[:1])
            word, constant = bytes([word[0] ^ constant]) + word[1:], doubled(constant)
        elif at % 8 == 4:
            word = bytes(SBOX[byte] for byte in word)
        words.append(bytes(a ^ b for a, b in zip(words[at - 8], word, strict=True)))
    return [b"".join(words[at : at + 4]) for at in range(0, 60, 4)]


def aes(keys: list[bytes], block: bytes) -> bytes:
    """FIPS 197, section 5.1, for 14 rounds."""
    state = [a ^ b for a, b in zip(block, keys[0], strict=True)]
    for number, key in enumerate(keys[1:], start=1):
        state = [SBOX[state[(at + 4 * (at % 4)) % 16]] for at in range(16)]
        if number < 14:
            columns = [state[at : at + 4] for at in range(0, 16, 4)]
            state = [
                times(2, c[at]) ^ times(3, c[(at + 1) % 4]) ^ c[(at + 2) % 4] ^ c[(at + 3) % 4]
                for c in columns
                for at in range(4)
            ]
        state = [a ^ b for a, b in zip(state, key, strict=True)]
    return bytes(state)


def keystream(key: bytes, size: int) -> bytes:
    """SP 800-38A, section 6.5: a counter from 0."""
    keys = round_keys(key)
    blocks = (aes(keys, counter.to_bytes(16, "big")) for counter in range(-(-size // 16)))
    return b"".join(blocks)[:size]


def lengthened(*parts: str | bytes) -> bytes:
    encoded = [part.encode() if isinstance(part, str) else part for part in parts]
    return b"".join(len(part).to_bytes(8, "big") + part for part in encoded)


def test_the_second_way_is_as_the_standards_print_it():
    """FIPS 197, C.3; RFC 7748, 5.2; RFC 5869, A.3 (its first 32 bytes)."""
    printed = bytes.fromhex("8ea2b7ca516745bfeafc49904b496089")
    assert aes(round_keys(bytes(range(32))), bytes.fromhex("00112233445566778899aabbccddeeff")) == printed
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    assert x25519(scalar, point).hex() == "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    assert hkdf(b"\x0b" * 22, b"").hex() == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"


def test_a_mask_is_the_keystream_of_its_key():
    """The blocks of a key of zeros stand in the specification of GCM too: test cases 13 (the tag) and 14 (the text)."""
    vector = np.zeros(12, np.uint32)
    add_keystreams(vector, added=[bytes(32)])
    first, second = "dc95c078a2408989ad48a21492842087", "530f8afbc74536b9a963b4f1c4cb738b"
    assert vector.tobytes().hex() == first + second + "cea7403d4d606b6e074ec5d3baf39d18"
    key = bytes(range(7, 39))
    for dtype in (np.uint16, np.uint32, np.uint64):
        taken = np.zeros(50, dtype)
        add_keystreams(taken, taken=[key])
        np.testing.assert_array_equal(-taken, np.frombuffer(keystream(key, taken.nbytes), dtype))


def test_keys_are_agreed_and_derived_as_the_standards_say():
    one, other = bytes(range(32)), bytes(range(50, 82))
    base = (9).to_bytes(32, "little")
    assert public_of(one) == x25519(one, base)
    assert agreed(one, public_of(other), b"what for") == hkdf(x25519(other, public_of(one)), b"what for")
    assert derived(one, b"what for") == hkdf(one, b"what for")


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_a_masked_vector_is_the_sum_of_what_the_paper_says(bits):
    """y = x + PRG(b) + the sum of PRG(s) with who comes after - that with who comes before (Bonawitz 2017, 4.0)."""
    played = dealt(4)
    dtype = np.dtype(f"u{bits // 8}")
    vector = vectors_of(names(1), 21, bits)["n000"]
    for number, name in enumerate(names(4)):
        secrets = played.secrets[name]
        private, masked = secrets.private, vector.copy()
        node.mask(node.receive(secrets, played.inbox(name)), masked)
        digest, expected = played.cohort.digest, vector.copy()

        def mask(secret, *what, digest=digest):
            stream = keystream(hkdf(secret, lengthened(*what[:1], digest, *what[1:])), 21 * dtype.itemsize)
            return np.frombuffer(stream, dtype)

        expected += mask(private.seed, "fedctl self mask", name)
        for place, other in enumerate(names(4)):
            if place != number:
                shared = x25519(private.mask_key, played.adverts[other].mask_key)
                pair = mask(shared, "fedctl pairwise mask", *sorted((name, other)), b"")
                expected = expected + pair if number < place else expected - pair
        np.testing.assert_array_equal(masked, expected)


def test_the_digest_of_a_cohort_is_over_all_of_it():
    cohort = dealt(3).cohort
    parts = [
        part
        for name, one in cohort.adverts.items()
        for part in (
            lengthened(
                *("fedctl advert", cohort.run, "3", name),
                *(one.identity, one.mask_key, one.seal_key, one.seed_digest),
            ),
            one.signature,
        )
    ]
    assert cohort.digest == hashlib.sha256(lengthened("fedctl cohort", cohort.run, "3", "2", "2", *parts)).digest()


FLOWER = Path(sys.prefix) / "flower" / "bin" / "python"
FLOWERS = """
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
import sys
for key in sys.argv[1:]:
    print(pseudo_rand_gen(bytes.fromhex(key), 16, [(4000,)])[0].tolist())
"""


def test_two_keys_of_one_mask_in_flower_are_keys_of_two_masks_here():
    """Flower folds a key of 256 bits to 32, and its masks never take the ring's last element."""
    one = bytes(range(32))
    other = bytes([*(byte ^ 0x5A for byte in one[:8]), *one[8:]])
    done = subprocess.run(
        [str(FLOWER), "-c", FLOWERS, one.hex(), other.hex()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first == second
    assert set(first) == set(range(15))
    masks = []
    for key in (one, other):
        masks.append(np.zeros(4000, np.uint16))
        add_keystreams(masks[-1], added=[key])
    assert abs(np.mean(masks[0] % 16 == masks[1] % 16) - 1 / 16) < 0.02
    assert set(masks[0] % 16) == set(range(16))
