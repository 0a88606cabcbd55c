"""The distances that krum, multi-krum and bulyan choose by: exact where updates are twins, and never NaN."""

import math

import numpy as np
import pytest
import torch

from fedctl.federation import Named
from fedctl.strategies import Contribution, build, distances
from fedctl.strategies.distances import distances_to, squared_distances

WIDTH = 3 * distances._LONGEST + 5  # several blocks, the last of them short
CHOOSING = ("krum", "multi-krum", "bulyan")


def contributions(rows: np.ndarray) -> list[Contribution]:
    half = WIDTH // 2
    return [
        Contribution(
            name=f"n{n:02d}",
            weight=1,
            weights={"a": torch.from_numpy(row[:half].copy()), "b": torch.from_numpy(row[half:].copy())},
        )
        for n, row in enumerate(rows)
    ]


def rows_of(seed: int, *, offset: float = 0.0, spread: float = 1.0) -> np.ndarray:
    return np.float32(offset + spread * np.random.default_rng(seed).normal(0, 1, (11, WIDTH)))


@pytest.mark.parametrize(("offset", "spread"), [(0.0, 1.0), (1.0, 1e-6), (1e4, 1e-2), (0.0, 1e-30), (0.0, 1e30)])
def test_a_distance_is_the_sum_of_squared_differences_however_close_the_updates(offset, spread):
    rows = rows_of(1, offset=offset, spread=spread)
    wide = rows.astype(np.float64)
    expected = [[((one - other) ** 2).sum() for other in wide] for one in wide]
    np.testing.assert_allclose(squared_distances(contributions(rows)), expected, rtol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_twins_are_at_no_distance_and_equally_far_from_all_others(offset):
    rows = rows_of(2, offset=offset)
    rows[4] = rows[9] = rows[0]
    matrix = squared_distances(contributions(rows))
    assert matrix[0, 4] == matrix[0, 9] == matrix[4, 9] == 0
    np.testing.assert_array_equal(matrix[0], matrix[4])
    np.testing.assert_array_equal(matrix[0], matrix[9])


def test_another_order_gives_the_same_bits_in_that_order():
    rows, order = rows_of(3, offset=5.0), np.random.default_rng(3).permutation(11)
    matrix = squared_distances(contributions(rows))
    np.testing.assert_array_equal(squared_distances(contributions(rows[order])), matrix[np.ix_(order, order)])


def test_the_number_of_threads_changes_no_bit():
    found, allowed = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(squared_distances(contributions(rows_of(4))))
    finally:
        torch.set_num_threads(allowed)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("name", CHOOSING)
@pytest.mark.parametrize(("dtype", "most"), [(np.float32, 3e38), (np.float64, 1e300)])
def test_hostile_values_at_the_end_of_the_type_choose_nothing(name, dtype, most):
    rows = rows_of(5).astype(dtype)
    rows[2], rows[7] = most, -most
    updates = contributions(rows)
    assert not np.isnan(squared_distances(updates)).any()
    model = build(Named(name=name, options={"hostile": 2})).aggregate({}, updates, {}).model
    assert max(float(tensor.abs().max()) for tensor in model.values()) < 10


@pytest.mark.parametrize("far", [1e154, 1e200, -1e300])
@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_how_far_an_update_lies_is_known_also_where_its_square_is_beyond_a_double(far, shape):
    updates = [
        Contribution(
            name=f"n{n}", weight=1, weights={"a": torch.full(shape, value, dtype=torch.float64), "b": torch.tensor(4.0)}
        )
        for n, value in enumerate((3.0, far))
    ]
    start = {"a": torch.zeros(shape, dtype=torch.float64), "b": torch.tensor(4.0)}
    width = math.sqrt(math.prod(shape))
    found = distances_to(lambda chunks: chunks[0], updates, start)
    np.testing.assert_allclose(found, [3 * width, abs(far) * width], rtol=1e-12)


@pytest.mark.parametrize("name", [*CHOOSING, "median", "trimmed-mean", "geometric-median", "norm-clip"])
@pytest.mark.parametrize("far", [1e154, 1e200, 1e300, -1.7e308])
def test_a_scalar_at_the_end_of_a_double_is_borne(name, far):
    values = [1.0, 2.0, far, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    updates = [
        Contribution(name=f"n{n:02d}", weight=1, weights={"w": torch.tensor(value, dtype=torch.float64)})
        for n, value in enumerate(values)
    ]
    options = {} if name == "norm-clip" else {"hostile": 1}
    start = {"w": torch.tensor(0.0, dtype=torch.float64)}
    model = build(Named(name=name, options=options)).aggregate(start, updates, {}).model
    assert 1 <= float(model["w"]) <= 10


def test_a_clipped_update_keeps_its_direction_however_far_it_goes():
    updates = [Contribution(name="n", weight=1, weights={"w": torch.tensor([3e300, -4e300], dtype=torch.float64)})]
    model = (
        build(Named(name="norm-clip", options={"norm": 5}))
        .aggregate({"w": torch.zeros(2, dtype=torch.float64)}, updates, {})
        .model
    )
    np.testing.assert_allclose(model["w"], [3, -4], rtol=1e-12)
