"""Noise from a cryptographic generator: uniform, Gaussian and discrete Gaussian numbers.

A `Generator` is AES-256 in counter mode under a key of the operating system's, so that no output tells of another. The
key is in this process alone, but for that of a round's noise, which is on the disk until the round is journalled.
"""

import hmac
import math
import os
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]
Words = np.ndarray[Any, np.dtype[np.uint64]]

_CHUNK = 1 << 16  # numbers at once: their words and what is made of them stay in the cache
MOST = float(1 << 48)
"""The widest discrete Gaussian: whole numbers far in its tails are still exact doubles."""


class Generator:
    """A stream of random numbers, each to be used once."""

    def __init__(self) -> None:
        self._start(os.urandom(32))

    @classmethod
    def of(cls, key: bytes) -> "Generator":
        """That of a key of 32 bytes, which gives the same numbers again: whoever knows it takes its noise off."""
        if len(key) != 32:
            raise ValueError(f"a generator's key has 32 bytes, not {len(key)}")
        generator = cls()
        generator._start(key)
        return generator

    def branch(self, name: str) -> "Generator":
        """A generator of its own for this name, from its beginning each time it is asked for."""
        return Generator.of(hmac.digest(self._key, name.encode(), "sha256"))

    def split(self) -> "Generator":
        """A generator of its own, another each time it is asked for."""
        return Generator.of(self._stream.update(bytes(32)))

    def uniform(self, count: int) -> Floats:
        """Numbers in (0, 1], each a multiple of 2**-53."""
        return _unit(self._words(count))

    def gaussian(self, count: int, std: float) -> Floats:
        """Gaussian numbers of mean 0, each half the sum of four from the polar form of Box and Muller.

        One alone could tell, by which doubles its formula can reach, what it was added to; of four nobody finds the
        parts: Holohan, Braghin: Secure Random Sampling in Differential Privacy, ESORICS 2021 (arXiv:2107.10138).
        """
        found = np.empty(count)
        for start in range(0, count, _CHUNK):
            some = found[start : start + _CHUNK]
            some[:] = 0.0
            for _ in range(2):
                radius = np.sqrt(-2.0 * np.log(self.uniform(len(some))))
                angle = self.uniform(len(some)) * math.tau
                some += radius * np.cos(angle)
                some += radius * np.sin(angle)
            some *= std / 2
        return found

    def discrete_gaussian(self, count: int, std: float) -> Integers:
        """Whole numbers n, each with a probability proportional to exp(-n²/(2 std²)); `std` is above 0, up to 2**48.

        By rejection from the discrete Laplace distribution: Canonne, Kamath, Steinke: The Discrete Gaussian for
        Differential Privacy, NeurIPS 2020. The paper's coins are exact; here each is a double's exp() against 64 random
        bits. So a probability is off by a factor within 1 ± 2**-38 out to nine deviations, and 2**-60 lies beyond.
        """
        if not 0 < std <= MOST:
            raise ValueError(f"a discrete Gaussian's deviation should be above 0, up to 2**48, not {std}")
        found = np.empty(count, dtype=np.int64)
        have = 0
        while have < count:
            some = self._tried(min(_CHUNK, 2 * (count - have) + 64), std)[: count - have]
            found[have : have + len(some)] = some
            have += len(some)
        return found

    def _tried(self, count: int, std: float) -> Integers:
        """What is accepted of so many tries."""
        scale = math.floor(std) + 1
        words = self._words(count)
        # Below a multiple of the scale every remainder is as likely.
        words = words[words < np.uint64(2**64 // scale * scale)] if scale & (scale - 1) else words
        rest = (words % np.uint64(scale)).astype(np.int64)
        rest = rest[self._heads(np.exp(rest / -scale))]
        laplace = rest + scale * np.floor(-np.log(self.uniform(len(rest)))).astype(np.int64)
        is_negative = (self._words(len(rest)) >> np.uint64(63)).astype(bool)
        is_first_zero = ~(is_negative & (laplace == 0))  # else 0 would come twice as often
        laplace = np.where(is_negative, -laplace, laplace)[is_first_zero]
        beyond = np.abs(laplace) - std * std / scale
        accepted: Integers = laplace[self._heads(np.exp(beyond * beyond / (-2.0 * std * std)))]
        return accepted

    def _heads(self, probabilities: Floats) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """Coins that fall so with these probabilities."""
        heads: np.ndarray[Any, np.dtype[np.bool_]] = self._words(len(probabilities)) * 2.0**-64 < probabilities
        return heads

    def _words(self, count: int) -> Words:
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")

    def _start(self, key: bytes) -> None:
        self._key = key
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()


def _unit(words: Words) -> Floats:
    units: Floats = ((words >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53
    return units
