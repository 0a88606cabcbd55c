"""Secrets in shares: any `threshold` of them tell the secret, fewer tell nothing whatever their holder can compute.

Shamir, How to Share a Secret, CACM 22(11), 1979, over the integers modulo the smallest prime above 2^256. Not in
constant time: Python's whole numbers take longer for larger ones, so how long `split` and `combine` take depends on the
secret a little. Fit for secrets of one round that are dealt and told once; not for keys that stay.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

PRIME = 2**256 + 297
SECRET_SIZE, SHARE_SIZE = 32, 33
"""In bytes."""


def split(
    secret: bytes, threshold: int, points: Sequence[int], random: Callable[[int], int] = secrets.randbelow
) -> dict[int, bytes]:
    """The shares of 32 bytes at these points, which are distinct and from 1; `random(n)` draws a number below n."""
    if len(secret) != SECRET_SIZE:
        raise ValueError(f"a secret has {SECRET_SIZE} bytes, not {len(secret)}")
    if not 1 <= threshold <= len(points):
        raise ValueError(f"{threshold} of {len(points)} shares cannot be needed")
    if len(set(points)) < len(points) or not all(1 <= point < PRIME for point in points):
        raise ValueError("the points of shares are distinct and from 1")
    coefficients = [random(PRIME) for _ in range(threshold - 1)]
    shares = {}
    for point in points:
        value = 0
        for coefficient in coefficients:
            value = (value + coefficient) * point % PRIME
        shares[point] = ((value + int.from_bytes(secret, "big")) % PRIME).to_bytes(SHARE_SIZE, "big")
    return shares


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes | None:
    """The secret that the first `threshold` shares tell, by their points; None where they are of no secret."""
    secret = value_at(0, shares, threshold)
    return secret.to_bytes(SECRET_SIZE, "big") if secret < 2 ** (8 * SECRET_SIZE) else None


def value_at(point: int, shares: Mapping[int, bytes], threshold: int) -> int:
    """What the polynomial through the first `threshold` shares is at a point: a share there, the secret at 0."""
    points = sorted(shares)[:threshold]
    if len(points) < threshold:
        raise ValueError(f"{threshold} shares are needed, not {len(points)}")
    values = [a_share(shares[each]) for each in points]
    return sum(map(int.__mul__, values, _weights(point, tuple(points)))) % PRIME


def a_share(share: bytes) -> int:
    """A share as a number; ValueError where the bytes are none."""
    value = int.from_bytes(share, "big")
    if len(share) != SHARE_SIZE or value >= PRIME:
        raise ValueError(f"a share is a number below the prime, in {SHARE_SIZE} bytes")
    return value


@lru_cache(maxsize=8)  # holders of one secret mostly hold all the others too
def _weights(at: int, points: tuple[int, ...]) -> list[int]:
    """Lagrange's weights: what each point's share counts at another point."""
    weights = []
    for point in points:
        above, below = 1, 1
        for other in points:
            if other != point:
                above = above * (at - other) % PRIME
                below = below * (point - other) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return weights
