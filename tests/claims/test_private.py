"""What differential privacy costs in accuracy where nodes are many, and that a clip that follows needs no tuning.

A hundred nodes hold 4,000 images of MNIST by Dirichlet(0.5), and train a linear layer; all take part in each round.
Nodes train plainly here, in one process, and the mean is the coordinator's own: thousands of trainings by the whole
program would take an hour. Shown before by Andrew, Thakkar, McMahan, Ramaswamy: Differentially Private Learning with
Adaptive Clipping, NeurIPS 2021.
"""

from collections.abc import Mapping
from functools import cache
from statistics import fmean

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fedctl.dp.accounting import epsilon
from fedctl.dp.central import CLIP, private
from fedctl.dp.noise import Generator
from fedctl.federation import Named
from fedctl.partition import dirichlet
from fedctl.privacy import AdaptiveClip, DifferentialPrivacy
from fedctl.strategies import Contribution, build
from tests.claims import figures
from tests.claims.mnist import images

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NODES, ROUNDS, LR, BATCH, LAST = 100, 30, 0.1, 20, 5
SEEDS = (0, 1)
FIXED = (0.1, 0.5, 2.0)
FIRST = 0.1
"""Where the clip that follows begins: far below the best fixed one."""

Model = Mapping[str, torch.Tensor]


@cache
def tables() -> tuple[torch.Tensor, ...]:
    train, test = images()
    return tuple(torch.from_numpy(each[axis]) for each in (train, test) for axis in ("x", "y"))


def trained(model: Model, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> Model:
    """One epoch of SGD."""
    weight, bias = (model[name].clone().requires_grad_() for name in ("weight", "bias"))
    for rows in torch.randperm(len(x), generator=generator).split(BATCH):
        loss = cross_entropy(x[rows].flatten(1) @ weight.T + bias, y[rows])
        for each, gradient in zip((weight, bias), torch.autograd.grad(loss, (weight, bias)), strict=True):
            each.data.sub_(LR * gradient)
    return {"weight": weight.detach(), "bias": bias.detach()}


def run(seed: int, dp: DifferentialPrivacy | None) -> tuple[float, float]:
    """The accuracy over the last rounds, and the clip at the end."""
    x, y, test_x, test_y = tables()
    shards = [torch.from_numpy(rows) for rows in dirichlet(y.numpy(), sites=NODES, alpha=0.5, seed=seed)]
    shards = [rows for rows in shards if len(rows)]
    strategy = build(Named(name="fedavg"))
    noise = Generator.of(bytes([seed]) * 32)  # so that the figures stay what they are
    rule = private(strategy, dp, expected=len(shards), generator=noise) if dp else strategy
    model: Model = {"weight": torch.zeros(10, 784), "bias": torch.zeros(10)}
    memory: Model = {}
    accuracies = []
    generator = torch.Generator().manual_seed(seed)
    for _ in range(ROUNDS):
        updates = [
            Contribution(name=f"{i:03d}", weight=1.0, weights=trained(model, x[rows], y[rows], generator))
            for i, rows in enumerate(shards)
        ]
        outcome = rule.aggregate(model, updates, memory)
        model, memory = ({name: one[name].clone() for name in one} for one in (outcome.model, outcome.memory))
        scores = test_x.flatten(1) @ model["weight"].T + model["bias"]
        accuracies.append(float((scores.argmax(1) == test_y).float().mean()))
    return fmean(accuracies[-LAST:]), float(memory[CLIP]) if CLIP in memory else float("nan")


def central(noise: float, clip: float, *, adaptive: bool = False) -> DifferentialPrivacy:
    return DifferentialPrivacy(
        mode="central", noise=noise, clip=clip, adaptive=AdaptiveClip() if adaptive else None, delta=1e-3
    )


@pytest.mark.parametrize("noise", [1.0, 2.0])
def test_a_clip_that_follows_is_as_good_as_the_best_fixed_one(noise):
    torch.set_num_threads(1)
    fixed = {clip: fmean(run(seed, central(noise, clip))[0] for seed in SEEDS) for clip in FIXED}
    found = [run(seed, central(noise, FIRST, adaptive=True)) for seed in SEEDS]
    plain = fmean(run(seed, None)[0] for seed in SEEDS)
    adaptive, clips = fmean(each[0] for each in found), [round(each[1], 2) for each in found]
    best = max(fixed.values())
    figures.record(
        f"100 nodes, noise {noise:g} (ε {epsilon([(noise, 1.0, ROUNDS)], 1e-3):.1f}): a clip that follows",
        bound="at most 2 points below the best fixed",
        seen=f"{100 * adaptive:.1f} %, clip {clips}; fixed "
        + ", ".join(f"{clip:g}: {100 * each:.1f} %" for clip, each in fixed.items())
        + f"; no noise {100 * plain:.1f} %",
    )
    assert adaptive > best - 0.02
    assert all(FIRST < each < 2 for each in clips), np.array(clips)
