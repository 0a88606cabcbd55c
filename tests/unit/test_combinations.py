"""What goes together with what is promised of updates: each cell of the table, through the whole algorithm's check."""

from dataclasses import replace

import pytest

from fedctl.errors import ConfigError
from fedctl.federation import Codecs, Federation, Limits, Named, Schedule
from fedctl.operations import combinations
from fedctl.operations.algorithm import build_algorithm
from fedctl.operations.combinations import COMBINATIONS, PROMISES, SUMS, WRITTEN
from fedctl.privacy import AdaptiveClip, DifferentialPrivacy, Privacy, SecureAggregation
from fedctl.share import Share
from tests.unit.test_algorithm import FEDERATION

PRIVATE = DifferentialPrivacy(mode="central", noise=1.0, clip=1.0)
MADE = {
    "secure": Privacy(secure_aggregation=SecureAggregation()),
    "central": Privacy(differential_privacy=PRIVATE),
    "distributed": Privacy(
        secure_aggregation=SecureAggregation(), differential_privacy=replace(PRIVATE, mode="distributed")
    ),
    "local": Privacy(differential_privacy=replace(PRIVATE, mode="local")),
    "clip": Privacy(clip=1.0),
}


def adaptive(given: Federation) -> Federation:
    privacy = given.privacy
    dp = replace(privacy.differential_privacy or PRIVATE, adaptive=AdaptiveClip())
    return replace(given, privacy=replace(privacy, differential_privacy=dp))


def clipped(given: Federation) -> Federation:
    return replace(given, privacy=replace(given.privacy, clip=2.0))


WITH = {
    "a strategy over": lambda given: replace(given, strategy=Named(name="median")),
    "a `codec` for updates other": lambda given: replace(given, codec=Codecs(up=(Named(name="bf16"),))),
    "`codec: int8`": lambda given: replace(given, codec=Codecs(up=(Named(name="int8"),))),
    "`share: {change": lambda given: replace(given, share=Share(change=0.01)),
    "`schedule: {mode: buffered}`": lambda given: replace(given, schedule=Schedule(mode="buffered", buffer=5)),
    "`schedule: {overprovision": lambda given: replace(given, schedule=Schedule(cohort=0.5, overprovision=1.5)),
    "`schedule: {partial": lambda given: replace(given, schedule=Schedule(partial=True, deadline_s=60.0)),
    "`compare: true`": lambda given: replace(given, compare=True),
    "fewer than three nodes": lambda given: replace(given, schedule=Schedule(cohort=2)),
    "`differential_privacy: {adaptive": adaptive,
    "`privacy: {clip": clipped,
    "`limits`": lambda given: replace(given, limits=Limits(norm=10.0)),
}
"""A federation with the thing of the row that begins so."""
CELLS = [(one, begins, promise) for one, begins in zip(COMBINATIONS, WITH, strict=True) for promise in PROMISES]


def test_every_row_and_every_promise_is_tried():
    assert all(one.what.startswith(begins) for one, begins in zip(COMBINATIONS, WITH, strict=True))
    assert set(MADE) == set(PROMISES)
    for name, privacy in MADE.items():
        assert PROMISES[name](privacy)


@pytest.mark.parametrize("promise", MADE)
def test_a_promise_goes_with_a_federation_that_has_nothing_of_this(promise):
    built = build_algorithm(replace(FEDERATION, privacy=MADE[promise]))
    assert built.federation.privacy == MADE[promise]


@pytest.mark.parametrize(("one", "begins", "promise"), CELLS, ids=[f"{one.where}-{p}" for one, _, p in CELLS])
def test_a_cell_of_the_table_holds(one, begins, promise):
    """Where it says no, the place is named, with why and what to do; where it says yes, the algorithm is built."""
    given = WITH[begins](replace(FEDERATION, privacy=MADE[promise]))
    refused = {other for other in PROMISES if other in one.refused and PROMISES[other](given.privacy)}
    if promise == "clip" and one.where == "privacy/differential_privacy/adaptive":
        given, refused = replace(given, privacy=replace(given.privacy, differential_privacy=None)), set()
    if not refused:
        assert promise not in one.refused
        build_algorithm(given)
        return
    with pytest.raises(ConfigError) as error:
        build_algorithm(given)
    assert str(error.value) in {
        f"{one.where}: does not go together with {WRITTEN[other]}: {one.refused[other]}" for other in refused
    }
    assert error.value.hint == one.hint


@pytest.mark.parametrize("promise", ["secure", "central", "distributed"])
@pytest.mark.parametrize("name", [*SUMS, "median", "krum", "norm-clip", "fednova", "qfedavg", "scaffold", "feddyn"])
def test_strategies_over_a_mean_go_with_masks_and_noise_and_no_others(name, promise):
    given = replace(FEDERATION, strategy=Named(name=name), privacy=MADE[promise])
    if name in SUMS:
        build_algorithm(given)
        return
    with pytest.raises(ConfigError, match="strategy: does not go together with "):
        build_algorithm(given)


@pytest.mark.parametrize("limits", [Limits(), Limits(norm=None, examples=None)])
def test_the_limits_that_all_have_are_no_hindrance(limits):
    build_algorithm(replace(FEDERATION, limits=limits, privacy=MADE["secure"]))


def test_distributed_noise_needs_masks():
    alone = Privacy(differential_privacy=replace(PRIVATE, mode="distributed"))
    with pytest.raises(ConfigError, match="distributed noise hides an update in the sum alone") as error:
        build_algorithm(replace(FEDERATION, privacy=alone))
    assert "add `secure_aggregation: {}`" in error.value.hint


def test_noise_that_would_come_around_in_the_ring_is_refused():
    """Each update is within the range; the sum with all nodes' noise must be so too."""
    much = replace(PRIVATE, mode="distributed", noise=3.0, clip=4.0)
    privacy = Privacy(secure_aggregation=SecureAggregation(range=8.0), differential_privacy=much)
    with pytest.raises(
        ConfigError, match="privacy/secure_aggregation/range: updates and their noise go up to"
    ) as error:
        build_algorithm(replace(FEDERATION, privacy=privacy))
    needed = float(error.value.hint.removeprefix("give at least "))
    wide = replace(privacy, secure_aggregation=SecureAggregation(range=1.1 * needed))
    build_algorithm(replace(FEDERATION, privacy=wide))


def test_codecs_of_models_and_parts_of_them_go_with_masks():
    build_algorithm(
        replace(
            FEDERATION,
            privacy=MADE["secure"],
            codec=Codecs(down=(Named(name="int8"),)),
            share=Share(only=("body.*",), every=(("body.0.*", 2),)),
        )
    )


def test_the_table_is_told_as_it_is():
    lines = combinations.table().splitlines()
    assert len(lines) == 2 + len(COMBINATIONS)
    for line, one in zip(lines[2:], COMBINATIONS, strict=True):
        said = [cell.strip() for cell in line.strip("|").split("|")]
        assert said == [one.what, *(f"no: {one.refused[p]}" if p in one.refused else "yes" for p in PROMISES)]
