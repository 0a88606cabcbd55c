"""Which tensors a round shares: periods, fragments of a model, and patterns that match nothing."""

import json
from math import lcm

import pytest

from fedctl.share import EVERYTHING, Share

BLOCK = {"attention.in_proj_weight": 4096, "attention.out_proj.weight": 1024, "mlp.0.weight": 4096, "mlp.0.bias": 64}
MODEL = {
    "bytes.weight": 8192,
    **{f"blocks.{number}.{name}": size for number in range(6) for name, size in BLOCK.items()},
    "norm.weight": 64,
    "head.weight": 8192,
    "scale": 4,
}


def rounds_of(share: Share, count: int) -> dict[str, list[int]]:
    """In which of the first rounds each tensor travels."""
    due = {number: share.due(MODEL, number) for number in range(1, count + 1)}
    return {name: [number for number, names in due.items() if name in names] for name in MODEL}


def test_all_that_is_shared_is_due_where_nothing_else_is_said():
    assert EVERYTHING.due(MODEL, 1) == EVERYTHING.due(MODEL, 2) == MODEL.keys()
    assert not EVERYTHING.is_scheduled
    assert Share(kept=("blocks.*",)).due(MODEL, 3) == {"bytes.weight", "norm.weight", "head.weight", "scale"}


def test_a_tensor_travels_in_the_rounds_that_its_period_divides_and_the_first_pattern_counts():
    share = Share(every=(("blocks.0.*", 2), ("blocks.*", 5), ("head.*", 3)))
    due = rounds_of(share, 12)
    assert due["blocks.0.mlp.0.weight"] == [2, 4, 6, 8, 10, 12]
    assert due["blocks.1.mlp.0.weight"] == [5, 10]
    assert due["head.weight"] == [3, 6, 9, 12]
    assert due["bytes.weight"] == list(range(1, 13))
    assert share.is_scheduled
    assert share.is_whole


@pytest.mark.parametrize("fragments", [2, 3, 4, 7])
def test_each_tensor_travels_in_one_of_so_many_rounds_and_a_module_at_once(fragments):
    due = rounds_of(Share(fragments=fragments), 3 * fragments)
    for name, rounds in due.items():
        assert rounds == [rounds[0] + turn * fragments for turn in range(3)], name
        assert rounds[0] <= fragments
    for number in range(6):
        assert due[f"blocks.{number}.mlp.0.weight"] == due[f"blocks.{number}.mlp.0.bias"]


@pytest.mark.parametrize("fragments", [2, 3, 4])
def test_fragments_are_about_as_large_as_each_other(fragments):
    share, whole = Share(fragments=fragments), sum(MODEL.values())
    sizes = [sum(MODEL[name] for name in share.due(MODEL, number)) for number in range(1, fragments + 1)]
    assert sum(sizes) == whole
    assert max(sizes) <= whole / fragments + max(MODEL.values())
    assert max(sizes) - min(sizes) <= max(MODEL.values())


def test_fragments_do_not_depend_on_the_order_of_names():
    share, turned = Share(fragments=3), dict(reversed(MODEL.items()))
    assert all(share.due(MODEL, number) == share.due(turned, number) for number in (1, 2, 3))


@pytest.mark.parametrize("fragments", [2, 3, 4])
@pytest.mark.parametrize("period", [2, 3, 4, 6])
def test_with_fragments_a_period_counts_the_turns_of_a_part(fragments, period):
    """Whatever the two numbers have in common, a tensor travels in one of so many turns of its part."""
    share = Share(fragments=fragments, every=(("blocks.*", period),))
    rare = rounds_of(share, 2 * period * fragments)
    often = rounds_of(Share(fragments=fragments), 2 * period * fragments)
    for name, turns in often.items():
        assert rare[name] == (turns[period - 1 :: period] if name.startswith("blocks.") else turns)


def test_once_all_periods_have_passed_all_has_travelled():
    share = Share(every=(("blocks.*", 4), ("head.*", 3)), fragments=2)
    assert all(rounds_of(share, 2 * lcm(4, 3)).values())


def test_patterns_that_match_nothing_are_named():
    share = Share(kept=("haed.*", "head.*"), every=(("blocks.7.*", 2), ("blocks.*", 3)))
    assert share.idle(MODEL) == ["haed.*", "blocks.7.*"]
    assert Share(only=("bytes.*",)).idle(MODEL) == EVERYTHING.idle(MODEL) == []


def test_a_node_is_told_the_same_as_json():
    share = Share(only=("a.*",), kept=("a.b",), every=(("a.*", 5),), fragments=4, change=0.01)
    assert Share.from_json(json.loads(json.dumps(share.to_json()))) == share
