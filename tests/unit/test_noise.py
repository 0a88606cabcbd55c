"""Noise: of the distribution that it should be, another each time, and the same for the same key."""

import math

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedctl.dp.noise import Generator

MANY = 400_000


@pytest.fixture
def generator():
    return Generator.of(bytes([11]) * 32)


def normal(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2


def furthest(found: np.ndarray, expected: np.ndarray) -> float:
    """How far the counts of something lie from what was expected of them, in deviations."""
    return float(np.max(np.abs(found - expected) / np.sqrt(expected * (1 - expected / MANY))))


def test_uniform_numbers_are_even_and_above_zero(generator):
    found = generator.uniform(MANY)
    assert found.min() > 0
    assert found.max() <= 1
    counts = np.histogram(found, bins=20, range=(0, 1))[0]
    assert furthest(counts, np.full(20, MANY / 20)) < 4.5


@pytest.mark.parametrize("std", [1e-3, 1.0, 250.0])
def test_a_gaussian_is_one(generator, std):
    found = generator.gaussian(MANY, std) / std
    edges = np.array([-math.inf, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, math.inf])
    expected = MANY * np.diff([normal(edge) for edge in edges])
    assert furthest(np.histogram(found, bins=edges)[0], expected) < 4.5
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 4.5 / math.sqrt(MANY)


@pytest.mark.parametrize("std", [0.3, 1.0, 1.9, 4.0])
def test_a_discrete_gaussian_has_the_probabilities_of_its_formula(generator, std):
    support = np.arange(-200, 201)
    weights = np.exp(-(support**2) / (2 * std**2))
    expected = MANY * weights / weights.sum()
    found = generator.discrete_gaussian(MANY, std)
    counts = np.bincount(found + 200, minlength=401)
    assert counts.sum() == MANY
    common = expected > 20
    assert furthest(counts[common], expected[common]) < 4.5
    assert counts[~common].sum() <= 3 * expected[~common].sum() + 20


@pytest.mark.parametrize("std", [1e4, 1e9, float(2**48)])
def test_a_wide_discrete_gaussian_is_as_wide(generator, std):
    found = generator.discrete_gaussian(MANY, std) / std
    assert abs(found.mean()) < 4.5 / math.sqrt(MANY)
    assert abs(found.std() - 1) < 4.5 / math.sqrt(2 * MANY)
    assert abs((np.abs(found) > 2).mean() - 2 * normal(-2)) < 0.002


@pytest.mark.parametrize("std", [0.0, -1.0, 2.0**49, math.nan])
def test_a_discrete_gaussian_of_no_width_is_refused(generator, std):
    with pytest.raises(ValueError, match="deviation should be above 0"):
        generator.discrete_gaussian(3, std)


def test_no_two_generators_say_the_same_and_no_output_comes_twice():
    one, other = Generator(), Generator()
    drawn = [tuple(each.uniform(4)) for each in (one, one, other, one.split(), one.split(), one.branch("a"))]
    assert len(set(drawn)) == len(drawn)


def test_a_branch_says_the_same_each_time():
    one = Generator()
    assert np.array_equal(one.branch("a").uniform(5), one.branch("a").uniform(5))
    assert not np.array_equal(one.branch("a").uniform(5), one.branch("b").uniform(5))


def test_a_generator_of_a_key_repeats_itself():
    one, other = Generator.of(b"k" * 32), Generator.of(b"k" * 32)
    assert np.array_equal(one.gaussian(9, 1.0), other.gaussian(9, 1.0))
    assert np.array_equal(one.split().uniform(9), other.split().uniform(9))
    assert not np.array_equal(Generator.of(b"l" * 32).uniform(9), Generator.of(b"k" * 32).uniform(9))
    with pytest.raises(ValueError, match="has 32 bytes, not 5"):
        Generator.of(b"short")


def test_the_words_are_those_of_aes_in_counter_mode(monkeypatch):
    monkeypatch.setattr("os.urandom", lambda count: bytes(range(count)))
    stream = Cipher(algorithms.AES(bytes(range(32))), modes.CTR(bytes(16))).encryptor().update(bytes(80))
    words = np.frombuffer(stream, dtype="<u8") >> np.uint64(11)
    assert np.array_equal(Generator().uniform(10), (words + 1) / 2**53)
