"""The family of strategies: how the updates of a round become the next model.

Owns the protocol, the table of names, and `build`, which makes a checked strategy of `{name: fedavgm, momentum: 0.9}`.
A strategy is a frozen dataclass whose fields are its options; it never talks to a node and never touches a file. This
module imports no torch, and a strategy's own module, imported when it is built, does so when it aggregates: names and
options are checked at once.
A new strategy is one file here and one line in `STRATEGIES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fedctl.errors import ConfigError
from fedctl.families import importable_from, imported, target_of
from fedctl.federation import Named
from fedctl.strategies.options import from_options

if TYPE_CHECKING:
    from torch import Tensor

STRATEGIES: Mapping[str, str] = {
    "fedavg": "fedctl.strategies.mean:Mean",
    "fedavgm": "fedctl.strategies.momentum:Momentum",
    "fedadam": "fedctl.strategies.fedadam:FedAdam",
    "fedyogi": "fedctl.strategies.fedyogi:FedYogi",
    "fedadagrad": "fedctl.strategies.fedadagrad:FedAdagrad",
    "diloco": "fedctl.strategies.diloco:DiLoCo",
    "fednova": "fedctl.strategies.fednova:FedNova",
    "qfedavg": "fedctl.strategies.qfedavg:QFedAvg",
    "scaffold": "fedctl.strategies.scaffold:Scaffold",
    "feddyn": "fedctl.strategies.feddyn:FedDyn",
    "median": "fedctl.strategies.median:Median",
    "trimmed-mean": "fedctl.strategies.trimmed_mean:TrimmedMean",
    "krum": "fedctl.strategies.krum:Krum",
    "multi-krum": "fedctl.strategies.multi_krum:MultiKrum",
    "bulyan": "fedctl.strategies.bulyan:Bulyan",
    "geometric-median": "fedctl.strategies.geometric_median:GeometricMedian",
    "norm-clip": "fedctl.strategies.norm_clip:NormClip",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """One node's update: its weights, and how much it counts (the examples it was trained on; finite, 0 or more).

    `steps` are those of the node's optimizer (0: none, or not known), and `loss` is what the node measured of the model
    before it trained it (None: not known). `controls` is what the node's local rule sent beside its weights: tensors by
    names of the model's, of the same shapes and dtypes (empty but where the strategy asks for them).
    """

    name: str
    weight: float
    weights: Mapping[str, Tensor]
    steps: int = 0
    loss: float | None = None
    controls: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The next model, and what the strategy is to be given again in the next round; both may be lazy."""

    model: Mapping[str, Tensor]
    memory: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Strategy(Protocol):
    """A rule of aggregation. `weighted` says whether the weights of contributions count in it."""

    @property
    def weighted(self) -> bool: ...

    def aggregate(
        self, model: Mapping[str, Tensor], updates: Sequence[Contribution], memory: Mapping[str, Tensor]
    ) -> Outcome:
        """The next model, of the names, shapes and dtypes that the updates have.

        `model` is the one that the updates started from; `updates` are at least one, alike and finite; `memory` is the
        previous round's (empty at first). The order of `updates` changes no bit of the outcome.
        """
        ...


def resolve(name: str) -> str:
    """The import string of the strategy of that name; `my_package.module:Class`, or `file.py:Class`, is one's own.

    Raises ConfigError for another name. Nothing is imported.
    """
    return target_of(name, STRATEGIES, family="strategy", plural="strategies")


def build(named: Named, *, folder: Path | None = None) -> Strategy:
    """The strategy with its options; `folder` is where a user's own modules may lie, beside those that are installed.

    Raises ConfigError for an unknown name, for code that cannot be imported, and for an option that is unknown, of
    another type or out of its range (`strategy/lr: should be above 0, not -1.0`).
    """
    with importable_from(folder):
        kind = imported(resolve(named.name), family="strategy")
        strategy = from_options(kind, named.options, where="strategy")
    if not isinstance(strategy, Strategy):
        raise ConfigError(f"strategy: {named.name} lacks `aggregate` or `weighted`")
    return strategy


def needs_steps(strategy: Strategy) -> bool:
    """Whether a strategy says that an update is of no use to it without its number of steps."""
    return bool(getattr(strategy, "needs_steps", False))


def needs_losses(strategy: Strategy) -> bool:
    """Whether a strategy says that an update is of no use to it without what its node's loss was before."""
    return bool(getattr(strategy, "needs_losses", False))


def least_of(strategy: Strategy) -> int:
    """How many updates a strategy is of no use without, by what it says as `least`."""
    return int(getattr(strategy, "least", 1))


def uses_controls(strategy: Strategy) -> bool:
    """Whether nodes are to have the strategy's memory beside the model, and send `controls` beside their weights."""
    return bool(getattr(strategy, "controls", False))


def fragments_of(strategy: Strategy) -> int:
    """Into how many parts a strategy has the model divided, of which a round shares one."""
    return int(getattr(strategy, "fragments", 1))


def rule_of(strategy: Strategy) -> Named | None:
    """The local rule that a strategy is of no use without; None where there is none."""
    return getattr(strategy, "rule_at_nodes", None)
