"""A private mean: bounded by the clip whoever comes, noisy as it says, and what strategies step on."""

import logging
import math

import numpy as np
import pytest
import torch

from fedctl.dp.central import CLIP, noise_of_count, noise_of_values, private
from fedctl.dp.clipping import clipped, norm_of
from fedctl.dp.distributed import check_room, deviation, noisy
from fedctl.dp.noise import Generator
from fedctl.errors import ConfigError, ModelError
from fedctl.federation import Named
from fedctl.privacy import AdaptiveClip, DifferentialPrivacy
from fedctl.strategies import Contribution, build

WIDE = 20_000
"""Values of a tensor that is there to measure noise on."""


def model() -> dict[str, torch.Tensor]:
    return {
        "layer.weight": torch.linspace(-1, 1, 12).view(3, 4),
        "half": torch.ones(5, dtype=torch.bfloat16),
        "complex": torch.ones(2, dtype=torch.complex64),
        "bn.running_var": torch.full((3,), 2.0),
        "bn.num_batches_tracked": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
    }


def update(seed: int, far: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + (far * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        if tensor.is_floating_point() or tensor.is_complex()
        else torch.ones_like(tensor)
        for name, tensor in model().items()
    }


def contributions(*updates: dict[str, torch.Tensor]) -> list[Contribution]:
    return [Contribution(name=f"n{i}", weight=10.0 ** (i + 1), weights=each) for i, each in enumerate(updates)]


def dp(**changes) -> DifferentialPrivacy:
    return DifferentialPrivacy(**{"mode": "central", "noise": 0.0, "clip": 1.0, **changes})


def moved(found, start) -> torch.Tensor:
    """Where a model went, all floating values in a row."""
    both = [(found[name], one) for name, one in start.items() if one.is_floating_point() or one.is_complex()]
    rows = [ours.cdouble() - one.cdouble() if one.is_complex() else ours.double() - one.double() for ours, one in both]
    return torch.cat([(torch.view_as_real(row) if row.is_complex() else row).flatten() for row in rows])


FEDAVG = build(Named(name="fedavg"))


# Clipping


def test_the_norm_is_of_every_floating_value():
    start, far = model(), update(1)
    assert norm_of(far, start) == pytest.approx(float(moved(far, start).norm()), rel=1e-12)
    assert norm_of(start, start) == 0


@pytest.mark.parametrize("most", [0.01, 1.0])
def test_a_clipped_update_goes_the_same_way_and_no_further(most):
    start, far = model(), update(1, 100.0)
    del start["half"], far["half"]  # whose own steps are as wide as what is left of the way
    near = clipped(far, start, most)
    assert norm_of(near, start) == pytest.approx(most, rel=1e-3)
    assert float(torch.cosine_similarity(moved(near, start), moved(far, start), dim=0)) > 0.999
    assert near["bn.num_batches_tracked"] == far["bn.num_batches_tracked"]
    assert {name: tensor.dtype for name, tensor in near.items()} == {name: one.dtype for name, one in start.items()}


def test_a_short_update_stays_as_it_is():
    far = update(1)
    assert clipped(far, model(), 1e9) is far


def test_what_is_not_finite_is_not_clipped():
    with pytest.raises(ModelError, match="NaN or infinite"):
        clipped({"a": torch.tensor([math.nan])}, {"a": torch.zeros(1)}, 1.0)


# The mean


def test_without_noise_it_is_the_mean_of_what_was_clipped():
    start, updates = model(), [update(1), update(2, 0.01)]
    found = private(FEDAVG, dp(clip=0.5), expected=2).aggregate(start, contributions(*updates), {}).model
    expected = sum(moved(each, start) * min(1, 0.5 / float(moved(each, start).norm())) for each in updates) / 2
    torch.testing.assert_close(moved(found, start), expected, atol=4e-3, rtol=0)
    exact = {name: tensor for name, tensor in found.items() if name != "half"}
    apart = moved(exact, {name: start[name] for name in exact}) - torch.cat([expected[:12], expected[17:]])
    assert apart.abs().max() < 1e-6


def test_integers_stay_the_models():
    found = private(FEDAVG, dp(), expected=1).aggregate(model(), contributions(update(1)), {}).model
    assert found["bn.num_batches_tracked"] == 7
    assert found["mask"].tolist() == [True, False]


def test_one_node_more_moves_the_mean_by_no_more_than_it_may():
    start, others = model(), [update(seed, 3.0) for seed in range(4)]
    rule = private(FEDAVG, dp(clip=0.25), expected=5)
    without = rule.aggregate(start, contributions(*others), {}).model
    having = rule.aggregate(start, contributions(*others, update(9, 1e6)), {}).model
    apart = moved(having, start) - moved(without, start)
    assert float(apart.norm()) <= 0.25 / 5 + 0.01  # what rounding to bfloat16 adds
    assert float(apart[:12].norm()) <= 0.25 / 5 + 1e-6


def test_who_stays_away_is_counted_all_the_same():
    start, one = model(), update(1)
    alone = private(FEDAVG, dp(clip=9e9), expected=4).aggregate(start, contributions(one), {}).model
    ways = [each["layer.weight"] - start["layer.weight"] for each in (alone, one)]
    torch.testing.assert_close(ways[0], ways[1] / 4)


@pytest.mark.parametrize(("noise", "clip", "expected"), [(1.0, 0.5, 10), (2.0, 3.0, 4)])
def test_the_noise_is_as_wide_as_promised(noise, clip, expected):
    start = {"a": torch.zeros(WIDE), "b": torch.zeros(WIDE, dtype=torch.float64)}
    rule = private(FEDAVG, dp(noise=noise, clip=clip), expected=expected)
    found = rule.aggregate(start, contributions(start), {}).model
    for name in start:
        assert float(found[name].std()) == pytest.approx(noise * clip / expected, rel=0.03)
    assert abs(np.corrcoef(found["a"], found["b"])[0, 1]) < 0.05, "each tensor has noise of its own"


def test_a_tensor_has_the_same_noise_each_time_and_another_in_each_round():
    start = {"a": torch.zeros(100)}
    rule = private(FEDAVG, dp(noise=1.0), expected=2)
    first, second = (rule.aggregate(start, contributions(start), {}).model for _ in range(2))
    assert torch.equal(first["a"], first["a"])
    assert not torch.equal(first["a"], second["a"])


def test_what_a_strategy_remembers_is_of_the_same_noise_as_the_model():
    start = {"a": torch.zeros(1000)}
    rule = private(build(Named(name="fedavgm", options={"momentum": 0.5})), dp(noise=1.0), expected=2)
    outcome = rule.aggregate(start, contributions(start), {})
    torch.testing.assert_close(outcome.model["a"], -outcome.memory["a/momentum_buffer"])
    again = rule.aggregate(outcome.model, contributions(outcome.model), outcome.memory)
    assert again.model["a"].std() > outcome.model["a"].std()


def test_a_variance_falls_by_no_more_than_half():
    start = {"bn.running_var": torch.full((500,), 0.5), "bn.running_mean": torch.zeros(500)}
    found = private(FEDAVG, dp(noise=5.0), expected=1).aggregate(start, contributions(start), {}).model
    assert found["bn.running_var"].min() == 0.25
    assert found["bn.running_mean"].min() < -5


@pytest.mark.parametrize("mode", ["central", "distributed"])
def test_a_sum_that_came_masked_is_scaled_and_only_a_coordinators_noise_is_added(mode):
    start = {"a": torch.zeros(WIDE)}
    came = Contribution(name="sum", weight=3.0, weights={"a": torch.full((WIDE,), 0.5)})
    rule = private(FEDAVG, dp(mode=mode, noise=1.0, clip=0.1), expected=4, is_summed=True)
    found = rule.aggregate(start, [came], {}).model["a"]
    assert float(found.mean()) == pytest.approx(0.375, abs=1e-3), "three of four, and not clipped again"
    assert float(found.std()) == pytest.approx(0.025 if mode == "central" else 0, rel=0.03)


def test_more_than_one_sum_is_refused():
    rule = private(FEDAVG, dp(), expected=4, is_summed=True)
    with pytest.raises(ModelError, match="come as one sum"):
        rule.aggregate(model(), contributions(update(1), update(2)), {})


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "diloco"])
def test_strategies_of_a_mean_step_on_it(name, caplog):
    start, rounds = model(), []
    for seed in (1, 1, 2):
        rule = private(build(Named(name=name)), dp(noise=0.1), expected=2, generator=Generator.of(bytes([seed]) * 32))
        rounds.append(rule.aggregate(start, contributions(update(1), update(2)), {}).model)
    assert all(torch.equal(rounds[0][name], rounds[1][name]) for name in start)
    assert any(not torch.equal(rounds[0][name], rounds[2][name]) for name in start)
    assert all(rounds[0][name].dtype == start[name].dtype for name in start)


@pytest.mark.parametrize("name", ["fednova", "qfedavg", "scaffold", "feddyn", "krum", "trimmed-mean"])
def test_strategies_that_want_more_are_refused(name):
    with pytest.raises(ConfigError, match="wants more than the mean"):
        private(build(Named(name=name)), dp(), expected=2)


# A clip that follows


def test_the_clip_finds_the_quantile_of_the_norms_and_lives_in_the_memory(caplog):
    caplog.set_level(logging.CRITICAL)
    start = {"a": torch.zeros(64)}
    updates = contributions(*({"a": torch.full((64,), length / 8)} for length in range(1, 41)))  # norms of 1 to 40
    rule = private(
        FEDAVG, dp(clip=0.1, noise=0.5, adaptive=AdaptiveClip()), expected=40, generator=Generator.of(bytes([5]) * 32)
    )
    memory: dict[str, torch.Tensor] = {}
    for _ in range(100):
        memory = {name: tensor.clone() for name, tensor in rule.aggregate(start, updates, memory).memory.items()}
    assert list(memory) == [CLIP]
    assert 15 < float(memory[CLIP]) < 26


def test_one_node_moves_the_clip_by_less_than_the_noise():
    start = {"a": torch.zeros(4)}
    few = contributions(*({"a": torch.full((4,), 0.1)} for _ in range(20)))
    adaptive = AdaptiveClip(noise=1e-9)
    rule = private(FEDAVG, dp(clip=1.0, noise=1e-10, adaptive=adaptive), expected=20)
    with_all, without = (float(rule.aggregate(start, each, {}).memory[CLIP]) for each in (few, few[:-1]))
    assert math.log(without / with_all) / adaptive.rate == pytest.approx(0.5 / 20, rel=1e-6)


def test_values_and_count_share_the_guarantee():
    assert noise_of_values(1.0, None) == 1.0
    assert noise_of_values(1.0, 5.0) == pytest.approx((1 - 0.01) ** -0.5)
    assert noise_of_count(AdaptiveClip(), 1.0, 100) == 5.0
    assert noise_of_count(AdaptiveClip(), 1.0, 4) == 1.0, "a twentieth of a small cohort would be no noise"
    with pytest.raises(ConfigError, match="too little for a noise of 1"):
        private(FEDAVG, dp(noise=1.0, adaptive=AdaptiveClip(noise=0.5)), expected=100)


def test_a_clip_cannot_follow_masked_updates():
    with pytest.raises(ConfigError, match="cannot follow updates that are masked"):
        private(FEDAVG, dp(adaptive=AdaptiveClip()), expected=4, is_summed=True)


# Noise of the nodes


def test_the_noise_of_as_many_nodes_as_are_needed_is_that_of_the_guarantee():
    step, count, least = 1e-4, WIDE, 5
    std = deviation(1.5, 2.0, step=step, count=count, least=least)
    total = np.zeros(count, dtype=np.uint32)
    for _ in range(least):
        noisy(total, std, Generator())
    found = total.view(np.int32) * step
    assert found.std() == pytest.approx(1.5 * (2.0 + step * math.sqrt(count)), rel=0.03)


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64])
def test_noise_goes_around_the_ring(kind):
    values = np.zeros(1000, dtype=kind)
    noisy(values, 50.0, Generator())
    signed = values.view(np.dtype(kind).name.removeprefix("u"))
    assert signed.min() < -50 < 50 < signed.max()


def test_steps_that_are_too_wide_or_too_fine_are_refused():
    with pytest.raises(ConfigError, match="steps of rounding wide, and does not count as Gaussian"):
        deviation(0.1, 1.0, step=0.5, count=4, least=10)
    with pytest.raises(ConfigError, match="at most"):
        deviation(1.0, 1.0, step=1e-15, count=4, least=2)


def test_a_range_has_room_for_updates_and_noise():
    check_room(1.0, 1.0, range=8.0, cohort=3, least=2)
    with pytest.raises(ConfigError, match="go up to") as refused:
        check_room(5.0, 1.0, range=8.0, cohort=3, least=2)
    enough = refused.value.hint.removeprefix("give at least ")
    check_room(5.0, 1.0, range=float(enough), cohort=3, least=2)
    assert enough == "19.4"
