"""What goes together with what is promised of updates, and why what does not does not.

One table: `check` refuses by it, and docs/privacy.md prints it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedctl import fleet, sampling
from fedctl.errors import ConfigError
from fedctl.federation import Federation, Limits
from fedctl.privacy import Privacy
from fedctl.strategies import Strategy, least_of, needs_losses, needs_steps, rule_of, uses_controls

SUMS = ("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "diloco")
"""The strategies that step on the mean of the updates, and ask nothing else of them."""

PROMISES: Mapping[str, Callable[[Privacy], bool]] = {
    "secure": lambda privacy: privacy.is_secure,
    "central": lambda privacy: privacy.mode == "central",
    "distributed": lambda privacy: privacy.mode == "distributed",
    "local": lambda privacy: privacy.mode == "local",
    "clip": lambda privacy: privacy.clip is not None,
}

WRITTEN = {
    "secure": "`secure_aggregation`",
    "central": "noise of `mode: central`",
    "distributed": "noise of `mode: distributed`",
    "local": "noise of `mode: local`",
    "clip": "`privacy: {clip: ...}`",
}
_MASKED = "the coordinator sees no single update"
_MEAN = "the noise is for a mean in which every node counts alike"


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """One thing that a federation may have beside a promise.

    `refused` says by promise why the two do not go together; with others it does. `is_there` says whether a federation
    with that strategy has it, `where` is its place in fed.yaml, and `hint` what to do.
    """

    what: str
    where: str
    is_there: Callable[[Federation, Strategy], bool]
    refused: Mapping[str, str]
    hint: str


def _needs_single(_: Federation, strategy: Strategy) -> bool:
    asks = (uses_controls, needs_steps, needs_losses, rule_of)
    return any(ask(strategy) for ask in asks) or least_of(strategy) > 1 or not getattr(strategy, "takes_a_mean", False)


def _codes_updates(federation: Federation, _: Strategy) -> bool:
    return not {codec.name for codec in federation.codec.up} <= {"int8"}


def _narrows_updates(federation: Federation, _: Strategy) -> bool:
    return {codec.name for codec in federation.codec.up} == {"int8"}


def _limits_updates(federation: Federation, _: Strategy) -> bool:
    given, default = federation.limits, Limits()
    return given.norm not in (None, default.norm) or given.examples not in (None, default.examples)


COMBINATIONS: tuple[Combination, ...] = (
    Combination(
        what="a strategy over single updates: robust ones, fednova, qfedavg, scaffold, feddyn, one of your own",
        where="strategy",
        is_there=_needs_single,
        refused={"secure": _MASKED, "central": _MEAN, "distributed": _MASKED},
        hint=f"choose {', '.join(SUMS[:-1])} or {SUMS[-1]}; a `clip` bounds each update, with or without noise",
    ),
    Combination(
        what="a `codec` for updates other than int8 alone",
        where="codec",
        is_there=_codes_updates,
        refused={
            "secure": "a masked update is noise to a codec",
            "distributed": "a masked update is noise to a codec",
        },
        hint="take `codec: int8`, which halves masked updates, or give codecs to models alone: `codec: {down: [...]}`",
    ),
    Combination(
        what="`codec: int8` for updates",
        where="codec",
        is_there=_narrows_updates,
        refused={"distributed": "the noise of each node is whole steps of one size, and these have one a tensor"},
        hint="leave it out for updates, or take `mode: central`",
    ),
    Combination(
        what="`share: {change: ...}`",
        where="share/change",
        is_there=lambda federation, _: federation.share.change > 0,
        refused={
            "secure": "masks need the same tensors of every node",
            "distributed": "masks need the same tensors of every node",
            "central": "which tensors come would tell of a node, without noise",
        },
        hint="leave `change` out; `only`, `except` and `every` go together with it",
    ),
    Combination(
        what="`schedule: {mode: buffered}`",
        where="schedule/mode",
        is_there=lambda federation, _: federation.schedule.mode == "buffered",
        refused={
            "secure": "masks come off the sum of one cohort, which all begin from one model",
            "distributed": "masks come off the sum of one cohort, which all begin from one model",
            "central": "how often a node takes part would follow from its speed, and be uncounted",
        },
        hint="leave `mode` out",
    ),
    Combination(
        what="`schedule: {overprovision: ...}`",
        where="schedule/overprovision",
        is_there=lambda federation, _: federation.schedule.overprovision > 1,
        refused={
            "central": "which nodes count would follow from their speed, not from chance",
            "distributed": "which nodes count would follow from their speed, not from chance",
        },
        hint="leave `overprovision` out, or ask a larger cohort",
    ),
    Combination(
        what="`schedule: {partial: true}`",
        where="schedule/partial",
        is_there=lambda federation, _: federation.schedule.partial,
        refused={
            "secure": "by telling all nodes but one to stop at once, that one's update could be read in the sum",
            "distributed": "by telling all nodes but one to stop at once, that one's update could be read in the sum",
        },
        hint="leave `partial` out",
    ),
    Combination(
        what="`compare: true`",
        where="compare",
        is_there=lambda federation, _: federation.compare,
        refused={
            "secure": "it would send what each node trains alone, unmasked, to all others",
            "central": "it would send what each node trains alone, without noise, to all others",
            "distributed": "it would send what each node trains alone, unmasked, to all others",
            "local": "what each node trains alone would cost as much again, and be uncounted",
        },
        hint="leave `compare` out",
    ),
    Combination(
        what="fewer than three nodes in a round",
        where="privacy/secure_aggregation",
        is_there=lambda federation, _: fleet.wanted(federation) < sampling.LEAST_MASKED,
        refused={"secure": "of two nodes each learns the other's update from the sum"},
        hint="it begins with three nodes in a round",
    ),
    Combination(
        what="`differential_privacy: {adaptive: ...}`",
        where="privacy/differential_privacy/adaptive",
        is_there=lambda federation, _: bool(
            federation.privacy.differential_privacy and federation.privacy.differential_privacy.adaptive
        ),
        refused={
            "secure": "a clip cannot follow updates that nobody sees",
            "distributed": "a clip cannot follow updates that nobody sees",
            "local": "gradients have one clip for the whole training",
        },
        hint="leave `adaptive` out",
    ),
    Combination(
        what="`privacy: {clip: ...}`",
        where="privacy/clip",
        is_there=lambda federation, _: federation.privacy.clip is not None,
        refused={
            "central": "a guarantee per node has a `clip` of its own",
            "distributed": "a guarantee per node has a `clip` of its own",
        },
        hint="leave the outer `clip` out",
    ),
    Combination(
        what="`limits` of one's own",
        where="limits",
        is_there=_limits_updates,
        refused={"secure": _MASKED, "distributed": _MASKED},
        hint="`privacy: {clip: ...}` bounds how far each goes, `examples` of `secure_aggregation` how much it counts",
    ),
)


def check(federation: Federation, strategy: Strategy) -> None:
    """Raises ConfigError for what does not go together with what the federation promises."""
    privacy = federation.privacy
    if privacy.mode == "distributed" and not privacy.is_secure:
        raise ConfigError(
            "privacy/differential_privacy/mode: distributed noise hides an update in the sum alone",
            hint="add `secure_aggregation: {}` beside it, or take `mode: central`, which trusts the coordinator",
        )
    if privacy.mode == "distributed":
        _check_room(federation)
    for combination in COMBINATIONS:
        if combination.is_there(federation, strategy):
            for promise, why in combination.refused.items():
                if PROMISES[promise](privacy):
                    raise ConfigError(
                        f"{combination.where}: does not go together with {WRITTEN[promise]}: {why}",
                        hint=combination.hint,
                    )


def _check_room(federation: Federation) -> None:
    """Refuse a range that the noise of the smallest cohort would leave; each node looks at its own cohort again."""
    from fedctl.dp.distributed import check_room

    dp, secure = federation.privacy.differential_privacy, federation.privacy.secure_aggregation
    if dp and secure:
        least = max(sampling.LEAST_MASKED, fleet.quorum(federation))
        check_room(dp.noise, dp.clip, range=secure.range, cohort=least, least=math.ceil(secure.threshold * least))


def table() -> str:
    """The table in Markdown: a row a thing, a column a promise."""
    lines = [f"| | {' | '.join(PROMISES)} |", f"| --- |{' --- |' * len(PROMISES)}"]
    for one in COMBINATIONS:
        cells = (f"no: {one.refused[promise]}" if promise in one.refused else "yes" for promise in PROMISES)
        lines.append(f"| {one.what} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
