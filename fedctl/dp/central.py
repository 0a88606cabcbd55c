"""A private mean of a round's updates, on which any strategy that steps on a mean then steps.

Each update's difference to the model is cut down to a norm C, and all count alike. Their sum is divided by the number
of nodes that the round was *expected* to have, and gets Gaussian noise of deviation noise x C over that number: so one
node more or less moves the mean by at most C / expected, however many came. A round of which some nodes stayed away
moves less, and is as private.

Every floating tensor is clipped and gets noise, statistics of BatchNorm as well. Integers and booleans tell of single
nodes and take no noise, so they stay the model's. A variance that noise made small (`*running_var`) falls by no more
than half a round, since no network bears a negative one: what is done to noisy values costs no privacy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from torch import Tensor

from fedctl.dp.clipping import factor, norm_of
from fedctl.dp.noise import Generator
from fedctl.errors import ConfigError, ModelError
from fedctl.privacy import AdaptiveClip, DifferentialPrivacy
from fedctl.strategies import (
    Contribution,
    Outcome,
    Strategy,
    fragments_of,
    least_of,
    needs_losses,
    needs_steps,
    rule_of,
    uses_controls,
)
from fedctl.strategies.elementwise import combined, in_name_order, is_averaged, length, require_start, values_of
from fedctl.weights import Lazy, joined, part, spec_of

CLIP = "privacy/clip"
"""The tensor of a memory that says the norm of the next round; no state of a strategy's is called so."""

_VARIANCE = "*running_var"


@dataclass(frozen=True, slots=True, kw_only=True)
class Private:
    """`strategy` over one private mean.

    `noise` is that of the guarantee (0: none is added, since the nodes did), `clip` the first round's norm. With
    `adaptive` the norm follows the updates', and lives in the memory, so that a run goes on with it after a crash:
    Andrew, Thakkar, McMahan, Ramaswamy: Differentially Private Learning with Adaptive Clipping, NeurIPS 2021.
    `expected` is the number of nodes that the mean is divided by. Where `is_summed`, there is one update, the mean of
    as many clipped ones as its weight says.
    """

    strategy: Strategy
    noise: float
    clip: float
    adaptive: AdaptiveClip | None = None
    expected: float
    is_summed: bool = False
    generator: Generator = field(default_factory=Generator)
    weighted: ClassVar[bool] = False

    @property
    def fragments(self) -> int:
        """As the strategy says."""
        return fragments_of(self.strategy)

    def aggregate(
        self, model: Mapping[str, Tensor], updates: Sequence[Contribution], memory: Mapping[str, Tensor]
    ) -> Outcome:
        """As `Strategy.aggregate`, with other noise each time; raises ModelError where `model` is empty."""
        require_start("differential privacy", model)
        ordered = in_name_order(updates)
        clip = float(memory[CLIP]) if self.adaptive and CLIP in memory else self.clip
        if self.is_summed:
            if len(ordered) != 1:
                raise ModelError(f"masked updates come as one sum, not as {len(ordered)}")
            shares, now = [ordered[0].weight], clip
        else:
            norms = [norm_of(update.weights, model) for update in ordered]
            shares, now = [factor(norm, clip) for norm in norms], self._next_clip(clip, norms)
        mean = self._mean(model, ordered, shares, clip)
        single = Contribution(name="mean", weight=1.0, weights=mean)
        rest = part(memory, [name for name in memory if name != CLIP])
        outcome = self.strategy.aggregate(model, [single], rest)
        kept = {CLIP: torch.tensor(now, dtype=torch.float64)} if self.adaptive else {}
        return Outcome(model=outcome.model, memory=joined(kept, outcome.memory))

    def _mean(
        self, model: Mapping[str, Tensor], updates: Sequence[Contribution], shares: Sequence[float], clip: float
    ) -> Lazy:
        """The model moved by the noisy mean; a tensor's noise is the same each time the tensor is asked for."""
        spec = spec_of(updates[0].weights)
        deviation = noise_of_values(self.noise, self._noise_of_count) * clip / self.expected
        generator, parts = self.generator.split(), [share / self.expected for share in shares]

        def tensor(name: str) -> Tensor:
            if not is_averaged(spec[name]):
                return model[name]
            count = length(spec[name])
            noise = torch.zeros((), dtype=torch.float64).expand(count)
            if deviation:
                noise = torch.from_numpy(generator.branch(name).gaussian(count, deviation))
            rows = [values_of(model, name), noise, *(values_of(update.weights, name) for update in updates)]
            is_variance = fnmatchcase(name, _VARIANCE)

            def moved(chunks: Sequence[Tensor]) -> Tensor:
                start = chunks[0].double()
                total = chunks[1].clone()
                for chunk, each in zip(chunks[2:], parts, strict=True):
                    total.add_(chunk.double() - start, alpha=each)
                total.add_(start)
                return torch.maximum(total, start / 2) if is_variance else total

            return combined(moved, rows, spec[name])

        return Lazy(spec, tensor)

    @property
    def _noise_of_count(self) -> float | None:
        return noise_of_count(self.adaptive, self.noise, self.expected) if self.adaptive else None

    def _next_clip(self, clip: float, norms: Sequence[float]) -> float:
        """C exp(-rate (b - quantile)), with b a noisy share of the nodes whose update is no longer than C.

        A node counts as 1/2 or -1/2 around a half, so that one more or less moves the sum by 1/2.
        """
        if self.adaptive is None:
            return clip
        noise = float(self.generator.gaussian(1, self._noise_of_count or 0.0)[0])
        within = math.fsum(0.5 if norm <= clip else -0.5 for norm in norms)
        share = 0.5 + (within + noise) / self.expected
        return clip * math.exp(-self.adaptive.rate * (share - self.adaptive.quantile))


def private(
    strategy: Strategy,
    dp: DifferentialPrivacy,
    *,
    expected: float,
    is_summed: bool = False,
    generator: Generator | None = None,
) -> Private:
    """The strategy over a mean with the noise that `dp` asks of the coordinator: none where the nodes add theirs.

    Raises ConfigError for a strategy that wants more of an update than its part of a mean, for noise of the count that
    leaves none for the values, and for a clip that should follow updates that nobody sees.
    """
    asks = (uses_controls, needs_steps, needs_losses, rule_of)
    if any(ask(strategy) for ask in asks) or least_of(strategy) > 1:
        raise ConfigError(
            f"privacy: {type(strategy).__name__} wants more than the mean of the updates",
            hint="choose fedavg, fedavgm, fedadam, fedyogi, fedadagrad or diloco",
        )
    if dp.adaptive and is_summed:
        raise ConfigError(
            "privacy/differential_privacy/clip: it cannot follow updates that are masked",
            hint="give it as one number",
        )
    noise = 0.0 if dp.mode == "distributed" else dp.noise
    if dp.adaptive:
        noise_of_values(noise, noise_of_count(dp.adaptive, noise, expected))
    return Private(
        strategy=strategy,
        noise=noise,
        clip=dp.clip,
        adaptive=dp.adaptive,
        expected=expected,
        is_summed=is_summed,
        generator=generator or Generator(),
    )


def noise_of_count(adaptive: AdaptiveClip, noise: float, expected: float) -> float:
    """The deviation of the noise of the count: a twentieth of the cohort, and in a small one as much as the values'."""
    return max(expected / 20, noise) if adaptive.noise is None else adaptive.noise


def noise_of_values(noise: float, of_count: float | None) -> float:
    """How much noise the values take so that values and count are together as private as `noise` alone.

    (noise^-2 - (2 of_count)^-2)^(-1/2), since the count moves by 1/2. Raises ConfigError where that is too little.
    """
    if of_count is None or noise == 0:
        return noise
    if 2 * of_count <= noise:
        raise ConfigError(
            f"privacy/differential_privacy/clip/noise: {of_count:g} is too little for a noise of {noise:g}",
            hint=f"give at least {noise:g}, or leave it out",
        )
    return 1 / math.sqrt(noise**-2 - (2 * of_count) ** -2)
