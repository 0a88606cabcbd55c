"""`scaffold` and `feddyn`: what they ask of nodes, and what they keep of nodes that are there in some rounds only."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl.errors import ModelError
from fedctl.federation import Named
from fedctl.strategies import Contribution, build, rule_of, uses_controls

NODES = 4

rounds_of_some = st.lists(st.sets(st.integers(0, NODES - 1), min_size=1), min_size=1, max_size=6)


def values(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(3, 2, generator=generator, dtype=torch.float64)


def update(node: int, weights: torch.Tensor, moved: torch.Tensor | None = None, examples: float = 1) -> Contribution:
    controls = {} if moved is None else {"w": moved}
    return Contribution(name=f"n{node}", weight=examples, weights={"w": weights}, controls=controls)


def test_what_is_asked_of_the_nodes():
    scaffold = build(Named(name="scaffold", options={"option": 1}))
    assert (uses_controls(scaffold), rule_of(scaffold)) == (True, Named(name="scaffold", options={"option": 1}))
    feddyn = build(Named(name="feddyn", options={"alpha": 1}))
    assert (uses_controls(feddyn), rule_of(feddyn)) == (False, Named(name="feddyn", options={"alpha": 1.0}))


@given(present=rounds_of_some, seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_scaffold_keeps_the_mean_of_all_nodes_controls(present, seed):
    """Also of those that are away, whose controls stay as they were."""
    strategy, generator = build(Named(name="scaffold", options={"nodes": NODES})), torch.Generator().manual_seed(seed)
    theirs, memory = torch.zeros(NODES, 3, 2, dtype=torch.float64), {}
    for nodes in present:
        updates = []
        for node in nodes:
            control = values(generator)
            updates.append(update(node, values(generator), control - theirs[node]))
            theirs[node] = control
        memory = dict(strategy.aggregate({}, updates, memory).memory)
    assert memory.keys() == {"w"}
    torch.testing.assert_close(memory["w"], theirs.mean(dim=0), rtol=1e-12, atol=1e-12)


@given(present=rounds_of_some, seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_feddyn_keeps_the_mean_of_all_nodes_gradients(present, seed):
    """Each node's own is what it has moved so far, times alpha; the model is beyond the mean by their mean."""
    alpha = 0.25
    strategy = build(Named(name="feddyn", options={"alpha": alpha, "nodes": NODES}))
    generator = torch.Generator().manual_seed(seed)
    theirs, memory, model = torch.zeros(NODES, 3, 2, dtype=torch.float64), {}, {"w": values(generator)}
    for nodes in present:
        updates = [update(node, values(generator), examples=node) for node in nodes]
        for node, one in zip(nodes, updates, strict=True):
            theirs[node] -= alpha * (one.weights["w"] - model["w"])
        outcome = strategy.aggregate(model, updates, memory)
        model, memory = dict(outcome.model), dict(outcome.memory)
        mean = torch.stack([one.weights["w"] for one in updates]).mean(dim=0)
        torch.testing.assert_close(memory["w/h"], theirs.mean(dim=0), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(model["w"], mean - theirs.mean(dim=0) / alpha, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_without_a_number_of_nodes_those_of_the_round_are_all(name):
    """And no number is smaller than what is there."""
    one, two = torch.ones(2), torch.full((2,), 3.0)
    updates, found = [update(0, one, one), update(1, two, two)], []
    for options in ({}, {"nodes": 2}, {"nodes": 1}):
        outcome = build(Named(name=name, options=options)).aggregate({"w": torch.zeros(2)}, updates, {})
        found.append((outcome.model["w"].tolist(), next(iter(dict(outcome.memory).values())).tolist()))
    assert found[0] == found[1] == found[2]
    assert found[0] == {"scaffold": ([2.0, 2.0], [2.0, 2.0]), "feddyn": ([4.0, 4.0], pytest.approx([-0.2, -0.2]))}[name]


def test_scaffold_counts_nodes_alike_unless_asked():
    updates = [update(0, torch.ones(2), torch.ones(2), 1), update(1, torch.full((2,), 5.0), torch.full((2,), 3.0), 3)]
    found = {}
    for by_examples in (False, True):
        strategy = build(Named(name="scaffold", options={"by_examples": by_examples}))
        assert strategy.weighted is by_examples
        outcome = strategy.aggregate({}, updates, {})
        found[by_examples] = (outcome.model["w"].tolist(), outcome.memory["w"].tolist())
    assert found == {False: ([3.0, 3.0], [2.0, 2.0]), True: ([4.0, 4.0], [2.5, 2.5])}


@pytest.mark.parametrize(("by_examples", "optimum"), [(False, 11 / 5), (True, 13 / 7)])
def test_scaffold_ends_at_the_optimum_of_what_it_weighs(by_examples, optimum):
    """Two nodes of 30 and 10 examples, of losses (y - 1)² / 2 and 4 (y - 2.5)² / 2, in rounds of ten steps of SGD."""
    examples, slopes, ends, own = (30, 10), (1.0, 4.0), (1.0, 2.5), [0.0, 0.0]
    strategy = build(Named(name="scaffold", options={"nodes": 2, "by_examples": by_examples}))
    model, memory = {"w": torch.zeros(1, dtype=torch.float64)}, {}
    for _ in range(200):
        updates, c = [], memory["w"].item() if memory else 0.0
        for node in range(2):
            y, gradients = model["w"].item(), []
            for _ in range(10):
                gradients.append(slopes[node] * (y - ends[node]))
                y -= 0.02 * (gradients[-1] + c - own[node])
            now = sum(gradients) / 10
            moved = torch.tensor([now - own[node]], dtype=torch.float64)
            updates.append(update(node, torch.tensor([y], dtype=torch.float64), moved, examples[node]))
            own[node] = now
        outcome = strategy.aggregate(model, updates, memory)
        model, memory = dict(outcome.model), dict(outcome.memory)
    assert model["w"].item() == pytest.approx(optimum, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_model_does_not_narrow_what_scaffold_remembers(dtype):
    """A hundredth of a control that moves a little each round adds up to the whole."""
    strategy, memory = build(Named(name="scaffold", options={"nodes": 100})), {}
    weights, moved = torch.zeros(3, dtype=dtype), torch.full((3,), 1 / 64, dtype=dtype)
    rounds = 3000
    for _ in range(rounds):
        memory = dict(strategy.aggregate({}, [update(0, weights, moved)], memory).memory)
    assert memory["w"].dtype == torch.float32
    assert memory["w"].tolist() == pytest.approx([rounds / 6400] * 3, rel=1e-4)


@pytest.mark.parametrize(
    ("model", "kept"),
    [
        (torch.float8_e4m3fn, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.complex64, torch.complex64),
    ],
)
def test_scaffold_remembers_in_single_precision_at_least(model, kept):
    weights = torch.ones(3).to(model)
    memory = build(Named(name="scaffold")).aggregate({}, [update(0, weights, weights)], {}).memory
    assert (memory["w"].dtype, memory["w"].real.tolist()) == (kept, [1.0] * 3)
    assert memory.spec["w"].dtype == str(kept).removeprefix("torch.")


def test_the_rate_of_scaffold_is_not_for_statistics():
    """But for both names of a tied tensor, of which only one has controls."""
    start, ends = torch.zeros(2), torch.ones(2)
    start = {"w": start, "tied": start, "bn.running_var": torch.ones(2), "frozen": torch.full((2,), 7.0)}
    ends = {"w": ends, "tied": ends, "bn.running_var": torch.full((2,), 0.25), "frozen": torch.full((2,), 7.0)}
    alone = Contribution(name="n", weight=1, weights=ends, controls={"w": torch.ones(2)})
    outcome = build(Named(name="scaffold", options={"lr": 3})).aggregate(start, [alone], {})
    assert {name: tensor.tolist() for name, tensor in outcome.model.items()} == {
        "w": [3.0, 3.0],
        "tied": [3.0, 3.0],
        "bn.running_var": [0.25, 0.25],
        "frozen": [7.0, 7.0],
    }
    assert outcome.memory.keys() == {"w"}


def test_feddyn_leaves_statistics_to_the_mean():
    start = {"w": torch.zeros(2), "bn.running_var": torch.ones(2)}
    ends = {"w": torch.ones(2), "bn.running_var": torch.full((2,), 0.25)}
    outcome = build(Named(name="feddyn")).aggregate(start, [Contribution(name="n", weight=1, weights=ends)], {})
    assert outcome.model["bn.running_var"].tolist() == [0.25, 0.25]
    assert outcome.memory.keys() == {"w/h", "w/steps"}


def test_a_node_without_controls_has_not_moved_its_own():
    strategy = build(Named(name="scaffold"))
    memory = dict(
        strategy.aggregate({}, [update(0, torch.ones(2), torch.ones(2)), update(1, torch.ones(2))], {}).memory
    )
    assert memory["w"].tolist() == [0.5, 0.5]
    again = strategy.aggregate({}, [update(1, torch.ones(2))], memory)
    assert again.memory["w"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("memory", [{}, {"w/momentum_buffer": torch.ones(2), "w/steps": torch.tensor(3)}])
def test_updates_of_another_strategy_have_no_controls(memory):
    with pytest.raises(ModelError, match="scaffold needs the controls that its local rule sends") as error:
        build(Named(name="scaffold")).aggregate({}, [update(0, torch.ones(2))], memory)
    assert "strategy: scaffold" in error.value.hint
