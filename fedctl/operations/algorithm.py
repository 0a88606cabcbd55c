"""The algorithm that fed.yaml names, checked as a whole before anything starts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedctl import fleet, staleness, topology
from fedctl.codecs.pipeline import Ways
from fedctl.errors import ConfigError
from fedctl.federation import Federation, Named
from fedctl.node.rules import RULES, kind_of
from fedctl.operations import combinations
from fedctl.operations.ways import ways_of
from fedctl.spending import check_budget
from fedctl.strategies import STRATEGIES, Strategy, build, fragments_of, least_of, needs_losses, rule_of, uses_controls
from fedctl.strategies.options import from_options

WRITTEN = {
    "fedprox": "`local: {name: fedprox, mu: 0.01}`",
    "ditto": "`local: {name: ditto, lambda: 0.1}`",
    "moon": "`local: {name: moon, features: body}`, with the name of your submodule",
    "fedbn": '`share: {except: ["norm.*"]}`, with the names of your normalisation layers',
    "fedper": '`share: {except: ["head.*"]}`, with the names of your last layers',
    "fedrep": '`share: {except: ["head.*"]}` and '
    '`local: {phases: [{train: ["head.*"], epochs: 5}, {except: ["head.*"], epochs: 1}]}`',
    "lora": '`share: {only: ["*lora_*"]}`',
    "finetune": "`finetune: {epochs: 5}`",
}
"""How algorithms are written that are neither a strategy nor a rule, or the one where the other is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """The strategy, how tensors travel, and the federation with all halves as they go together."""

    strategy: Strategy
    ways: Ways
    federation: Federation


def affordable_algorithm(federation: Federation, path: Path, overrides: Sequence[str]) -> Algorithm:
    """That of a federation read from a file, whose first round is within its budget; errors say in which line."""
    with topology.placed(path, overrides):
        algorithm = build_algorithm(federation)
        check_budget(federation)
    return algorithm


def build_algorithm(federation: Federation) -> Algorithm:
    """Both halves of the algorithm; a strategy may bring its local rule, and such a rule its strategy.

    Raises ConfigError for a name, a type or a range that is wrong in either, and for halves that do not go together.
    """
    _check_words(federation)
    local = federation.local
    if local:
        from_options(kind_of(local.name), local.options, where="local")
    named = strategy_of(federation)
    strategy = build(named, folder=federation.folder)
    if fragments_of(strategy) > 1:
        federation = replace(federation, share=replace(federation.share, fragments=fragments_of(strategy)))
    combinations.check(federation, strategy)
    _check_least(federation, named.name, strategy)
    if federation.schedule.mode == "buffered":
        _check_buffered(federation, named.name, strategy)
    if needs_losses(strategy) and federation.task.monitor.mode == "max":
        raise ConfigError(
            f"strategy: {named.name} goes by the nodes' losses, and of `{federation.task.monitor.metric}` the more the "
            "better",
            hint="give `task: {monitor: {metric: val_loss, mode: min}}`, or a loss of another name",
        )
    rule = rule_of(strategy)
    if local and local.name in STRATEGIES and (rule is None or rule.name != local.name):
        raise ConfigError(
            f"local: {local.name} is one half of an algorithm, and its other half is the strategy {local.name}",
            hint=f"write `strategy: {local.name}`, which brings its local rule",
        )
    if rule and local and (local.name != rule.name or not local.options.items() <= rule.options.items()):
        raise ConfigError(
            f"local: the strategy {named.name} brings its own local rule",
            hint="leave `local` out, and give options to the strategy",
        )
    _check_turns(federation, named.name, strategy)
    whole = replace(federation, strategy=named, local=rule or local)
    return Algorithm(strategy=strategy, ways=ways_of(whole), federation=whole)


def _check_words(federation: Federation) -> None:
    """Refuse an algorithm that is known and written otherwise, with the way to write it."""
    local = federation.local
    for key, named in (("strategy", federation.strategy), ("local", local)):
        if named and (way := WRITTEN.get(named.name)) and not way.startswith(f"`{key}: {{name: {named.name}"):
            raise ConfigError(f"{key}: {named.name} is written otherwise", hint=f"write {way}")
    if federation.finetune and local and local.name in RULES and kind_of(local.name).is_personal:
        raise ConfigError(
            f"finetune: {local.name} gives each node a model of its own already",
            hint="leave one of the two out",
        )


def strategy_of(federation: Federation) -> Named:
    """The strategy of the federation, which its local rule may bring, told how many nodes there are.

    Raises ConfigError for a name or an option that is wrong.
    """
    local, named = federation.local, federation.strategy
    is_brought = local and local.name in STRATEGIES and named == Named(name="fedavg")
    return told_of_nodes(local if local and is_brought else named, federation)


def told_of_nodes(named: Named, federation: Federation) -> Named:
    """The same strategy with the number of the federation's nodes where it asks for it; raises ConfigError."""
    if getattr(build(named, folder=federation.folder), "nodes", 0) is not None:
        return named
    return replace(named, options={**named.options, "nodes": len(federation.nodes)})


def _check_buffered(federation: Federation, name: str, strategy: Strategy) -> None:
    """Refuse what a round that takes late updates cannot give a strategy, and a function of staleness that is none."""
    staleness.build(federation.schedule.staleness)
    why = None
    if uses_controls(strategy) or rule_of(strategy):
        why = "keeps account with its nodes of what each did to the round's model"
    elif needs_losses(strategy):
        why = "goes by what all nodes of a round think of its model"
    if federation.share.is_scheduled:
        raise ConfigError(
            "share: with `schedule: {mode: buffered}` the updates of a model began in different rounds, and would hold "
            "different tensors",
            hint="leave out `every` and `fragments`, or `mode`",
        )
    if why:
        raise ConfigError(
            f"strategy: {name} {why}, and with `schedule: {{mode: buffered}}` nodes train different models",
            hint="leave `mode` out, or choose another strategy",
        )


def _check_turns(federation: Federation, name: str, strategy: Strategy) -> None:
    """Refuse parts of the model whose turn never comes, and rounds of a part where all has to come together."""
    if not federation.share.is_scheduled:
        return
    for pattern, period in federation.share.every:
        if (turn := period * federation.share.fragments) > federation.rounds:
            raise ConfigError(
                f"share/every: `{pattern}` has its turn once in {turn} rounds, and there are {federation.rounds}",
                hint="give it a smaller number, best one that divides the rounds",
            )
    if uses_controls(strategy) or rule_of(strategy):
        raise ConfigError(
            f"share: {name} corrects every step by all of the model, and some rounds would share a part of it",
            hint="leave `every` and `fragments` out, or take fedavg",
        )


def _check_least(federation: Federation, name: str, strategy: Strategy) -> None:
    """Refuse a strategy that needs more updates than a round may close with."""
    if (quorum := fleet.quorum(federation)) < (least := least_of(strategy)):
        is_enough = least <= fleet.wanted(federation)
        is_buffered = federation.schedule.mode == "buffered"
        more = f"give `schedule: {{buffer: {least}}}`" if is_buffered else f"have a round ask {least} nodes or more"
        remedy = f"give `schedule: {{quorum: {least}}}`" if is_enough else more
        raise ConfigError(
            f"strategy: {name} needs {least} updates, and a round may close with {quorum}",
            hint=f"{remedy}, or lower `hostile`" if getattr(strategy, "hostile", 0) else remedy,
        )
