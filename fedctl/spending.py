"""What a run's models tell of its nodes, by its journal: the guarantee that noise has given so far.

Importing the accountants takes seconds, and is put off to where something was spent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedctl import sampling
from fedctl.errors import ConfigError
from fedctl.federation import Federation
from fedctl.state import RunState

if TYPE_CHECKING:
    from fedctl.dp.noise import Generator
    from fedctl.strategies import Strategy

History = Sequence[tuple[float, float, int]]
_FEWER = 0.1
"""Of all nodes, a cohort that a guarantee gains by where there are enough of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What was spent, and what would be with one more round, at `delta`; `mode` says how."""

    mode: str
    noise: float
    epsilon: float
    epsilon_next: float
    delta: float

    @property
    def metadata(self) -> dict[str, str]:
        """What a model's file says of it."""
        return {
            "privacy": self.mode,
            "noise": f"{self.noise:g}",
            "epsilon": f"{self.epsilon:.6g}",
            "delta": f"{self.delta:g}",
        }


def with_noise(
    strategy: "Strategy", federation: Federation, generator: "Generator", rounding: float = 0.0
) -> "Strategy":
    """The strategy over a mean of the round's updates that has the noise which is promised, from that generator.

    An update may be longer than its clip by what `rounding` added, and the noise is for that.
    """
    from fedctl.dp.central import private

    dp = federation.privacy.differential_privacy
    if dp is None:
        return strategy
    if rounding and dp.mode == "central":
        dp = replace(dp, clip=dp.clip + rounding)
    expected, is_summed = sampling.expected(federation), federation.privacy.is_secure
    return private(strategy, dp, expected=expected, is_summed=is_summed, generator=generator)


def spending(state: RunState, federation: Federation) -> Spending | None:
    """With the open round; None where no noise is promised.

    A round counts as soon as its model is made or given up, whoever stayed away from it: the noise is for the nodes
    that were expected. Noise that nodes add to their own gradients is counted node by node: the most of any is told.
    """
    dp = federation.privacy.differential_privacy
    if dp is None:
        return None
    if dp.mode == "local":
        histories = [node.spent for node in state.nodes.values() if node.spent]
        now = max((_epsilon(federation, history) for history in histories), default=0.0)
        then = max((_epsilon(federation, (*history, history[-1])) for history in histories), default=0.0)
    else:
        rate = sampling.rate(federation)
        rounds = state.round + 1
        now, then = (_epsilon(federation, [(dp.noise, rate, count)]) for count in (rounds, rounds + 1))
    return Spending(mode=dp.mode, noise=dp.noise, epsilon=now, epsilon_next=then, delta=dp.delta)


def planned(federation: Federation) -> tuple[float, int] | None:
    """What all rounds will have spent if the budget lets them, and how many it does; None where rounds do not tell."""
    dp = federation.privacy.differential_privacy
    if dp is None or dp.mode == "local":
        return None
    rate, rounds = sampling.rate(federation), affordable(federation)
    return _epsilon(federation, [(dp.noise, rate, rounds)] if rounds else []), rounds


def affordable(federation: Federation) -> int:
    """How many rounds the budget lets be, of those that are wanted; all where rounds do not tell."""
    dp = federation.privacy.differential_privacy
    if dp is None or dp.epsilon is None or dp.mode == "local":
        return federation.rounds
    from fedctl.dp.accounting import steps_within

    step, is_discrete = (dp.noise, sampling.rate(federation)), dp.mode == "distributed"
    return steps_within(dp.epsilon, step, dp.delta, most=federation.rounds, is_discrete=is_discrete)


def check_budget(federation: Federation) -> None:
    """Raises ConfigError where the first round would spend more than the run may."""
    dp = federation.privacy.differential_privacy
    if dp is None or dp.epsilon is None or dp.mode == "local":
        return
    rate = sampling.rate(federation)
    first = _epsilon(federation, [(dp.noise, rate, 1)])
    if first > dp.epsilon:
        from fedctl.dp.accounting import noise_within

        enough = noise_within(dp.epsilon, rate, federation.rounds, dp.delta)
        fewer = replace(federation, schedule=replace(federation.schedule, cohort=_FEWER))
        takes_fewer = f"have a round take fewer of the nodes (`schedule: {{cohort: {_FEWER}}}`), "
        raise ConfigError(
            f"privacy/differential_privacy/epsilon: one round spends {first:.3g}, and the budget is {dp.epsilon:g}",
            hint=f"raise `noise`{'' if enough is None else f' ({enough:g} lasts for all rounds)'}, "
            f"{takes_fewer if sampling.rate(fewer) < rate else ''}or raise `epsilon`",
        )


def _epsilon(federation: Federation, history: History) -> float:
    from fedctl.dp.accounting import epsilon

    dp = federation.privacy.differential_privacy
    if dp is None:
        raise AssertionError("asked what was spent where nothing is")
    return epsilon(history, dp.delta, is_discrete=dp.mode == "distributed")
