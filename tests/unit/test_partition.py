"""Every row goes to exactly one site, the same seed gives the same sites, and what cannot be is refused."""

import ast
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import fedctl.partition
from fedctl.partition import dirichlet, shards

LABELS = np.random.default_rng(0).integers(10, size=1797)


def entropy(labels: np.ndarray) -> float:
    share = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-(share * np.log(share)).sum())


def mean_entropy(sites: list[np.ndarray]) -> float:
    return float(np.mean([entropy(LABELS[rows]) for rows in sites]))


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("sites", [1, 5, 20])
@pytest.mark.parametrize("deal", [lambda **k: dirichlet(LABELS, alpha=0.3, **k), lambda **k: shards(LABELS, **k)])
def test_each_row_goes_to_exactly_one_site(deal, sites, seed):
    dealt = deal(sites=sites, seed=seed)
    assert len(dealt) == sites
    assert np.array_equal(np.sort(np.concatenate(dealt)), np.arange(len(LABELS)))
    assert all((np.diff(rows) > 0).all() for rows in dealt)


@pytest.mark.parametrize(
    "deal",
    [lambda seed: dirichlet(LABELS, sites=5, alpha=0.3, seed=seed), lambda seed: shards(LABELS, sites=5, seed=seed)],
)
def test_the_seed_decides(deal):
    again = [np.array_equal(*pair) for pair in zip(deal(3), deal(3), strict=True)]
    other = [np.array_equal(*pair) for pair in zip(deal(3), deal(4), strict=True)]
    assert all(again)
    assert not all(other)


def test_a_larger_alpha_is_more_even():
    mixes = [mean_entropy(dirichlet(LABELS, sites=5, alpha=alpha, seed=0)) for alpha in (0.05, 0.3, 3, 100)]
    assert all(less < more for less, more in pairwise(mixes))
    assert mixes[-1] == pytest.approx(np.log(10), abs=0.05)


def test_no_site_falls_below_the_smallest():
    labels = np.repeat(np.arange(4), 30)
    for seed in range(20):
        assert min(map(len, dirichlet(labels, sites=6, alpha=0.5, seed=seed, smallest=12))) >= 12


def test_a_site_may_be_empty_if_asked():
    assert sum(map(len, dirichlet([0, 1], sites=5, alpha=0.3, seed=0, smallest=0))) == 2


@pytest.mark.parametrize("per_site", [1, 2, 3])
def test_shards_know_few_classes_and_are_of_one_size(per_site):
    labels = np.repeat(np.arange(10), 100)
    dealt = shards(np.random.default_rng(1).permutation(labels), sites=10, per_site=per_site, seed=0)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= per_site
    balanced = shards(labels, sites=10, per_site=1, seed=0)
    assert all(len(np.unique(labels[rows])) == 1 for rows in balanced)


def test_labels_of_any_kind_will_do():
    words = np.array(["cat", "dog", "cow"] * 40)
    numbers = np.unique(words, return_inverse=True)[1]
    for deal in (
        lambda labels: dirichlet(labels, sites=3, alpha=1, seed=0),
        lambda labels: shards(labels, sites=3, seed=0),
    ):
        assert all(np.array_equal(*pair) for pair in zip(deal(words), deal(list(numbers)), strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": []}, "labels must be"),
        ({"labels": [[0, 1], [1, 0]]}, r"labels must be .* not of shape \(2, 2\)"),
        ({"sites": 0}, "sites must be at least 1, not 0"),
        ({"alpha": 0}, "alpha must be a finite number above 0, not 0"),
        ({"alpha": float("nan")}, "alpha must be"),
        ({"alpha": float("inf")}, "alpha must be"),
        ({"smallest": -1}, "smallest must be at least 0"),
        ({"sites": 200}, "1797 rows cannot give 200 sites 10 rows each"),
        ({"sites": 170}, "none of 5 draws gave each of 170 sites 10 of the 1797 rows at alpha 0.3"),
    ],
)
def test_dirichlet_refuses(wrong, message, monkeypatch):
    monkeypatch.setattr(fedctl.partition, "_REDRAWS", 5)
    arguments = {"labels": LABELS, "sites": 5, "alpha": 0.3, "seed": 0} | wrong
    with pytest.raises(ValueError, match=message):
        dirichlet(arguments.pop("labels"), **arguments)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": []}, "labels must be"),
        ({"sites": 0}, "sites must be at least 1"),
        ({"per_site": 0}, "per_site must be at least 1"),
        ({"sites": 1000}, "1797 rows cannot be cut into 2000 shards"),
    ],
)
def test_shards_refuses(wrong, message):
    arguments = {"labels": LABELS, "sites": 5, "seed": 0} | wrong
    with pytest.raises(ValueError, match=message):
        shards(arguments.pop("labels"), **arguments)


def test_the_file_can_travel_alone():
    tree = ast.parse(Path(fedctl.partition.__file__).read_text(), feature_version=(3, 10))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    modules = {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names | modules} == {"math", "numpy"}
