"""The algorithm of a fed.yaml as a whole: what a strategy is told of the federation, and what it cannot do without."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

from fedctl.errors import ConfigError
from fedctl.federation import Federation, Finetune, Monitor, Named, Node, Schedule, TaskSpec
from fedctl.operations.algorithm import build_algorithm, strategy_of, told_of_nodes
from fedctl.share import Share
from fedctl.strategies import Outcome

FEDERATION = Federation(
    name="f",
    folder=Path(),
    task=TaskSpec(model="model.py:Net", data="data.py:Data"),
    nodes=tuple(Node(name=f"n{number}") for number in range(10)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A user's own strategy, which asks for two updates and knows of no hostile node."""

    weighted: ClassVar[bool] = False
    least: ClassVar[int] = 2

    def aggregate(self, _model, updates, _memory):
        return Outcome(model=updates[0].weights)


def with_strategy(name: str, schedule: Schedule, **options: object) -> Federation:
    return replace(FEDERATION, strategy=Named(name=name, options=options), schedule=schedule)


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("fedavg", {}, 1),
        ("median", {}, 1),
        ("median", {"hostile": 2}, 5),
        ("trimmed-mean", {}, 3),
        ("geometric-median", {"hostile": 1}, 3),
        ("krum", {}, 5),
        ("multi-krum", {"keep": 6}, 7),
        ("bulyan", {}, 7),
        ("norm-clip", {"rule": {"name": "krum", "hostile": 2}}, 7),
    ],
)
def test_a_round_may_not_close_with_fewer_updates_than_the_strategy_needs(name, options, least):
    build_algorithm(with_strategy(name, Schedule(quorum=least), **options))
    if least > 1:
        with pytest.raises(ConfigError) as error:
            build_algorithm(with_strategy(name, Schedule(quorum=least - 1), **options))
        assert str(error.value) == f"strategy: {name} needs {least} updates, and a round may close with {least - 1}"
        assert error.value.hint == f"give `schedule: {{quorum: {least}}}`, or lower `hostile`"


def test_a_quorum_cannot_mend_a_cohort_that_is_too_small():
    with pytest.raises(ConfigError, match="krum needs 5 updates, and a round may close with 4") as error:
        build_algorithm(with_strategy("krum", Schedule(cohort=4, quorum=1.0)))
    assert error.value.hint == "have a round ask 5 nodes or more, or lower `hostile`"


def buffered(**fields) -> Schedule:
    return Schedule(**{"mode": "buffered", "buffer": 5, **fields})


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "diloco", "fedadam", "fednova", "median", "krum", "norm-clip"])
def test_late_updates_go_to_any_strategy_that_takes_them_one_by_one(name):
    build_algorithm(with_strategy(name, buffered(quorum=1.0)))


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("scaffold", {}, "keeps account with its nodes of what each did to the round's model"),
        ("feddyn", {}, "keeps account with its nodes of what each did to the round's model"),
        ("qfedavg", {}, "goes by what all nodes of a round think of its model"),
        ("norm-clip", {"rule": "qfedavg"}, "goes by what all nodes of a round think of its model"),
    ],
)
def test_a_strategy_that_needs_all_nodes_at_one_model_is_refused_where_updates_may_be_late(name, options, why):
    with pytest.raises(ConfigError) as error:
        build_algorithm(with_strategy(name, buffered(), **options))
    assert str(error.value) == (
        f"strategy: {name} {why}, and with `schedule: {{mode: buffered}}` nodes train different models"
    )


def test_a_buffer_has_to_be_as_large_as_the_strategy_needs():
    with pytest.raises(ConfigError, match="bulyan needs 7 updates, and a round may close with 5") as error:
        build_algorithm(with_strategy("bulyan", buffered(quorum=1.0)))
    assert error.value.hint == "give `schedule: {buffer: 7}`, or lower `hostile`"
    with pytest.raises(ConfigError, match="krum needs 5 updates, and a round may close with 4") as error:
        build_algorithm(with_strategy("krum", buffered()))
    assert error.value.hint == "give `schedule: {quorum: 5}`, or lower `hostile`"


def test_a_function_of_staleness_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="schedule/staleness: there is none called 'poly'"):
        build_algorithm(with_strategy("fedavg", buffered(staleness=Named(name="poly"))))


@pytest.mark.parametrize("share", [Share(every=(("head.*", 2),)), Share(fragments=2)])
def test_updates_of_different_rounds_have_to_hold_the_same_tensors(share):
    build_algorithm(replace(FEDERATION, share=share))
    build_algorithm(replace(FEDERATION, share=Share(kept=("head.*",)), schedule=buffered()))
    with pytest.raises(ConfigError, match="began in different rounds"):
        build_algorithm(replace(FEDERATION, share=share, schedule=buffered()))


def test_only_a_strategy_that_bears_hostile_nodes_is_advised_to_bear_fewer():
    for name, options in {"multi-krum": {"hostile": 0, "keep": 6}, "tests.unit.test_algorithm:Pair": {}}.items():
        with pytest.raises(ConfigError, match="and a round may close with 1") as error:
            build_algorithm(with_strategy(name, Schedule(quorum=1), **options))
        assert "hostile" not in error.value.hint
        assert error.value.hint.startswith("give `schedule: {quorum: ")


@pytest.mark.parametrize(("name", "options"), [("qfedavg", {}), ("norm-clip", {"rule": "qfedavg"})])
def test_what_goes_by_losses_is_refused_where_the_metric_is_none(name, options):
    federation = with_strategy(name, Schedule(), **options)
    build_algorithm(federation)
    task = replace(federation.task, monitor=Monitor(metric="val_acc", mode="max"))
    with pytest.raises(ConfigError) as error:
        build_algorithm(replace(federation, task=task))
    assert str(error.value) == f"strategy: {name} goes by the nodes' losses, and of `val_acc` the more the better"
    assert "monitor: {metric: val_loss, mode: min}" in error.value.hint
    build_algorithm(replace(federation, strategy=Named(name="fedavg"), task=task))


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_a_strategy_that_asks_is_told_how_many_nodes_there_are(name):
    found = build_algorithm(with_strategy(name, Schedule(cohort=0.3)))
    assert found.strategy.nodes == 10
    assert build_algorithm(with_strategy(name, Schedule(), nodes=40)).strategy.nodes == 40
    assert told_of_nodes(Named(name="fedavg"), FEDERATION) == Named(name="fedavg")


def test_a_local_rule_brings_the_strategy_that_it_is_half_of():
    local = Named(name="feddyn", options={"alpha": 0.3})
    found = strategy_of(replace(FEDERATION, local=local))
    assert found == Named(name="feddyn", options={"alpha": 0.3, "nodes": 10})
    assert strategy_of(replace(FEDERATION, local=Named(name="fedprox"))) == Named(name="fedavg")


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ({"strategy": Named(name="fedprox")}, "strategy: fedprox is written otherwise", "`local: {name: fedprox"),
        ({"strategy": Named(name="fedper")}, "strategy: fedper is written otherwise", '`share: {except: ["head.*"]}`'),
        ({"local": Named(name="fedbn")}, "local: fedbn is written otherwise", '`share: {except: ["norm.*"]}`'),
        ({"local": Named(name="fedrep")}, "local: fedrep is written otherwise", "`local: {phases: [{train:"),
        (
            {"local": Named(name="ditto"), "finetune": Finetune()},
            "finetune: ditto gives each node a model of its own already",
            "leave one of the two out",
        ),
    ],
)
def test_an_algorithm_that_is_written_otherwise_is_refused_with_the_way_to_write_it(fields, message, hint):
    with pytest.raises(ConfigError) as refused:
        build_algorithm(replace(FEDERATION, **fields))
    assert refused.value.message == message
    assert hint in refused.value.hint


def test_a_part_of_the_model_whose_turn_never_comes_is_refused():
    rare = replace(FEDERATION, share=Share(every=(("head.*", 7),)), rounds=6)
    with pytest.raises(ConfigError, match=r"`head\.\*` has its turn once in 7 rounds, and there are 6") as error:
        build_algorithm(rare)
    assert "one that divides the rounds" in error.value.hint
    build_algorithm(replace(rare, rounds=7))
