"""What a node has spent by noise, and whether one more training is within what may be spent."""

import math

from fedctl.dp.accounting import Step, epsilon, is_within
from fedctl.errors import ConfigError
from fedctl.node.bounds import Bounds
from fedctl.privacy import DifferentialPrivacy, Privacy
from fedctl.records import Task

HISTORY = "history"
"""What of a task's `privacy` says how much its node has spent in this run: noise, rate and steps of each training."""


def history_of(task: Task) -> list[Step]:
    """The steps of the node's trainings in this run so far."""
    return [(float(noise), float(rate), int(steps)) for noise, rate, steps in task.privacy.get(HISTORY, ())]


def metered(dp: DifferentialPrivacy, history: list[Step], now: Step) -> dict[str, float]:
    """What `Result.privacy` says of a training, with the epsilon of all of the node's in this run."""
    noise, rate, steps = now
    so_far = epsilon([*history, now], dp.delta, is_discrete=dp.mode == "distributed")
    return {"noise": noise, "rate": rate, "steps": steps, "epsilon": so_far, "delta": dp.delta}


def check(
    dp: DifferentialPrivacy, history: list[Step], bounds: Bounds, step: tuple[float, float], steps: float
) -> None:
    """Raises ConfigError where so many more of a step would spend more than the federation or the owner allows.

    What a federation spends by rounds its coordinator counts.
    """
    budgets = (
        ("the federation's budget", dp.epsilon if dp.mode == "local" else None, dp.delta, history),
        ("the node's owner", bounds.epsilon, bounds.delta or dp.delta, list(bounds.spent)),
    )
    for whose, allowed, delta, before in budgets:
        if allowed is None:
            continue
        if not math.isfinite(steps) or steps < 0:
            raise ConfigError(
                f"{whose} allows an epsilon of {allowed:g}, and this has no end: give max_epochs or max_steps"
            )
        after = [*before, (*step, int(steps))]
        is_discrete = dp.mode == "distributed" or any(_may_be_discrete(each) for each in after)
        if not is_within(allowed, after, delta, is_discrete=is_discrete):
            raise ConfigError(
                f"this training would bring the node's epsilon from "
                f"{epsilon(before, delta, is_discrete=is_discrete):.3g} to "
                f"{epsilon(after, delta, is_discrete=is_discrete):.3g} at delta {delta:g}, and {whose} allows "
                f"{allowed:g}: more `noise` or fewer epochs, in a new run, spend less"
            )


def noise_of_update(task: Task, bounds: Bounds) -> dict[str, float]:
    """What a masked update spends that gets a node's part of distributed noise; nothing where it gets none.

    It is that of the sum of the fewest nodes that may be: one step with all nodes. Raises ConfigError beyond a budget.
    """
    dp = Privacy.from_json(task.privacy).differential_privacy
    if dp is None or dp.mode != "distributed":
        return {}
    history = history_of(task)
    check(dp, history, bounds, (dp.noise, 1.0), 1)
    return metered(dp, history, (dp.noise, 1.0, 1))


def _may_be_discrete(step: Step) -> bool:
    """Whether a step is that of a masked update's noise, which an owner's list holds among those of gradients."""
    _, rate, steps = step
    return rate == 1.0 and steps == 1
