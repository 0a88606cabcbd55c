"""What must hold of every rule whatever the numbers: weights that sum to one, and bounds under hostile nodes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl.federation import Named
from fedctl.strategies import Contribution, build
from tests.parity import cases

WIDTH = 20
BOUNDED = ("median", "trimmed-mean", "krum", "multi-krum", "bulyan", "geometric-median")

extremes = st.sampled_from([0.0, 1.0, -1.0, 1e3, -1e12, 1e30, -1e30, 3e38, -3e38])


def aggregate(name: str, rows: np.ndarray, start: np.ndarray) -> np.ndarray:
    options = {**cases.OPTIONS[name], "hostile": cases.HOSTILE} if name in BOUNDED else cases.OPTIONS[name]
    updates = [
        Contribution(
            name=f"n{n:02d}",
            weight=1,
            weights={"w": torch.from_numpy(row)},
            steps=1 + n,
            loss=1.0 + n,
            controls={"w": torch.full((WIDTH,), 1.0 + n)},
        )
        for n, row in enumerate(rows)
    ]
    return (
        build(Named(name=name, options=options))
        .aggregate({"w": torch.from_numpy(start)}, updates, {})
        .model["w"]
        .numpy()
    )


def honest(seed: int, nodes: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (nodes, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("name", BOUNDED)
@given(
    seed=st.integers(0, 999),
    attacks=st.lists(extremes, min_size=cases.HOSTILE, max_size=cases.HOSTILE),
    place=st.integers(0, 9),
)
@settings(max_examples=25, deadline=None)
def test_hostile_nodes_cannot_carry_a_robust_rule_away(name, seed, attacks, place):
    """Within a few diameters of the honest updates, wherever the hostile ones lie."""
    good = honest(seed, 9)
    rows = np.insert(good, [place % 9, place // 2], [np.full(WIDTH, attack, np.float32) for attack in attacks], axis=0)
    found = aggregate(name, rows, np.zeros(WIDTH, np.float32))
    diameter = max(np.linalg.norm(one - other) for one in good for other in good)
    assert np.linalg.norm(found.astype(np.float64) - good.mean(axis=0)) < 4 * diameter


@pytest.mark.parametrize("name", BOUNDED)
@given(attacks=st.lists(st.floats(-1.7e308, 1.7e308), min_size=cases.HOSTILE, max_size=cases.HOSTILE))
@settings(max_examples=25, deadline=None)
def test_hostile_nodes_cannot_carry_a_model_of_one_double_away(name, attacks):
    found = aggregate(
        name,
        np.array([[1.0], [1.5], [2.0], [2.5], [3.0], [3.5], [4.0], [4.5], [5.0]] + [[a] for a in attacks]),
        np.zeros(1),
    )
    assert -16 < float(found[0]) < 22


@pytest.mark.parametrize("name", ["median", "trimmed-mean"])
@given(seed=st.integers(0, 999), attacks=st.lists(extremes, min_size=cases.HOSTILE, max_size=cases.HOSTILE))
@settings(max_examples=25, deadline=None)
def test_each_coordinate_stays_among_the_honest_ones(name, seed, attacks):
    good = honest(seed, 9)
    rows = np.vstack([good, *(np.full((1, WIDTH), attack, np.float32) for attack in attacks)])
    found = aggregate(name, rows, np.zeros(WIDTH, np.float32))
    assert (found >= good.min(axis=0)).all()
    assert (found <= good.max(axis=0)).all()


@given(seed=st.integers(0, 999), attack=extremes)
@settings(max_examples=25, deadline=None)
def test_a_clipped_update_moves_the_mean_no_farther_than_its_share(seed, attack):
    rows = honest(seed, 9)
    rows[3] = attack
    found = aggregate("norm-clip", rows, np.zeros(WIDTH, np.float32))
    assert np.linalg.norm(found.astype(np.float64)) <= np.median(np.linalg.norm(rows.astype(np.float64), axis=1)) * (
        1 + 1e-6
    )


@pytest.mark.parametrize("name", cases.OPTIONS)
@given(seed=st.integers(0, 999), moved=st.sampled_from([-8.0, 0.5, 64.0]))
@settings(max_examples=10, deadline=None)
def test_weights_sum_to_one_so_a_shift_of_everything_shifts_the_outcome(name, seed, moved):
    rows, start = honest(seed, 11), honest(seed + 1_000, 1)[0]
    rows, start = np.round(rows * 256) / 256, np.round(start * 256) / 256  # sums with `moved` are exact
    still = aggregate(name, rows, start)
    np.testing.assert_allclose(
        aggregate(name, rows + np.float32(moved), start + np.float32(moved)), still + moved, atol=3e-5
    )
