"""Cohorts that are drawn by a coin for each node, and when a guarantee may count on the chance."""

import math
from dataclasses import replace

import pytest

from fedctl import fleet, sampling
from fedctl.actions import GiveUp, OpenRound, WidenRound
from fedctl.events import RoundOpened
from fedctl.federation import Federation
from fedctl.plan import plan
from fedctl.privacy import DifferentialPrivacy, Privacy, SecureAggregation
from tests.unit.runs import Story
from tests.unit.test_plan import federation

CENTRAL = DifferentialPrivacy(mode="central", noise=1.0, clip=1.0)
SECURE = SecureAggregation()
DISTRIBUTED = replace(CENTRAL, mode="distributed")


def names(count: int) -> list[str]:
    return [f"n{number:04d}" for number in range(count)]


def described(count: int, cohort: float, privacy: Privacy, **more) -> Federation:
    return replace(federation(*names(count), cohort=cohort, **more), privacy=privacy)


def central(count: int = 100, cohort: float = 0.2, **more) -> Federation:
    return described(count, cohort, Privacy(differential_privacy=CENTRAL), **more)


@pytest.mark.parametrize(
    ("privacy", "cohort", "by_coin"),
    [
        (Privacy(), 0.2, False),
        (Privacy(secure_aggregation=SECURE), 0.2, False),
        (Privacy(differential_privacy=replace(CENTRAL, mode="local")), 0.2, False),
        (Privacy(differential_privacy=CENTRAL), 0.2, True),
        (Privacy(differential_privacy=CENTRAL), 20, True),
        (Privacy(differential_privacy=CENTRAL), 1.0, False),
        (Privacy(differential_privacy=CENTRAL, secure_aggregation=SECURE), 0.2, False),
        (Privacy(differential_privacy=DISTRIBUTED, secure_aggregation=SECURE), 0.2, False),
    ],
)
def test_coins_are_for_guarantees_per_node_over_a_part_of_the_nodes(privacy, cohort, by_coin):
    """Where nobody else knows who was drawn: all of a masked cohort do."""
    assert sampling.is_by_coin(described(100, cohort, privacy)) == by_coin


@pytest.mark.parametrize(("cohort", "expected"), [(0.25, 25.0), (30, 30.0), (1.0, 100.0), (500, 100.0)])
def test_how_many_nodes_a_round_is_expected_to_take(cohort, expected):
    assert sampling.expected(central(100, cohort)) == pytest.approx(expected)


def test_a_draw_follows_from_the_runs_own_number_and_the_round_and_nothing_else():
    given = central()
    drawn = sampling.drawn(given, 4, 11, names(100))
    assert drawn == sampling.drawn(given, 4, 11, reversed_names := names(100)[::-1])
    assert set(reversed_names) > set(drawn)
    assert drawn == tuple(sorted(drawn))
    assert drawn == sampling.drawn(replace(given, seed=99), 4, 11, names(100)), "the seed is known to all"
    assert drawn != sampling.drawn(given, 5, 11, names(100))
    assert drawn != sampling.drawn(given, 4, 12, names(100))


def test_each_node_is_drawn_for_itself_and_as_often_as_the_share_says():
    """Poisson sampling: whether one node is in says nothing about another, and cohorts differ in size."""
    given, rounds = central(), 1500
    cohorts = [set(sampling.drawn(given, number, 3, names(100))) for number in range(rounds)]
    sizes = [len(cohort) for cohort in cohorts]
    deviation = math.sqrt(100 * 0.2 * 0.8)
    assert sum(sizes) / rounds == pytest.approx(20, abs=5 * deviation / math.sqrt(rounds))
    assert sum((size - 20) ** 2 for size in sizes) / rounds == pytest.approx(16, rel=0.2), "binomial, not fixed"
    both = sum({"n0001", "n0002"} <= cohort for cohort in cohorts) / rounds
    assert both == pytest.approx(0.04, abs=5 * math.sqrt(0.04 * 0.96 / rounds))


def test_a_node_that_is_away_changes_nobody_elses_coin():
    given = central()
    whole = sampling.drawn(given, 1, 5, names(100))
    here = [name for name in names(100) if name != whole[0]]
    assert sampling.drawn(given, 1, 5, here) == whole[1:]


def test_a_round_is_never_of_nobody():
    given = central(10, 0.1)
    sizes = {len(sampling.drawn(given, number, 1, names(10))) for number in range(300)}
    assert min(sizes) == 1 == fleet.quorum(given)
    assert max(sizes) > 2
    assert sampling.drawn(given, 1, 1, names(1)) == tuple(names(1))
    assert sampling.drawn(given, 1, 1, []) == ()


def test_a_masked_cohort_has_the_size_that_was_asked_for():
    given = described(40, 0.25, Privacy(differential_privacy=DISTRIBUTED, secure_aggregation=SECURE))
    story = Story(*names(40), rounds=2, draw=77)
    story.ready()
    story.built()
    story.scored(0)
    (opening,) = [action for action in plan(story.state, given, story.now) if isinstance(action, OpenRound)]
    assert len(opening.nodes) == opening.wanted == 10 == sampling.expected(given)
    assert opening.secure


def test_chance_counts_where_hardly_a_draw_is_thrown_away():
    """The odds that a run of 100 rounds throws one away are held against a tenth of delta."""
    for count, cohort in ((50, 0.2), (100, 0.2), (200, 0.2), (500, 0.05), (1000, 0.02)):
        odds = 100 * (1 - cohort) ** count
        assert sampling.rate(central(count, cohort, rounds=100)) == (cohort if odds <= 1e-6 else 1.0), (count, odds)
    assert sampling.rate(central(100, 0.2)) == 0.2
    assert sampling.rate(central(10, 0.2)) == 1.0
    assert sampling.rate(central(100, 1.0)) == 1.0
    assert sampling.rate(described(100, 0.2, Privacy())) == 1.0
    distributed = Privacy(differential_privacy=DISTRIBUTED, secure_aggregation=SECURE)
    assert sampling.rate(described(1000, 0.2, distributed)) == 1.0, "who takes part is known"


def test_the_plan_opens_a_round_with_whoever_was_drawn_and_wants_them_all():
    given = central(40, 0.25)
    story = Story(*names(40), rounds=2, draw=77)
    story.ready()
    story.built()
    story.scored(0)
    (opening,) = [action for action in plan(story.state, given, story.now) if isinstance(action, OpenRound)]
    assert opening.nodes == sampling.drawn(given, 1, 77, names(40))
    assert (opening.wanted, opening.quorum) == (len(opening.nodes), 1), "nobody else would do in their stead"
    story.resumed(draw=77)
    again = [action for action in plan(story.state, given, story.now) if isinstance(action, OpenRound)]
    assert again == [opening], "a resume draws the same"


@pytest.mark.parametrize("cohort", [0.2, 0.999])
def test_where_chance_is_counted_nobody_joins_who_was_not_drawn(cohort):
    """Nor at random: whoever fails is missed."""
    given = central(100, cohort, quorum=1.0, attempts=1)
    assert sampling.is_counted(given)
    story = Story(*names(100), rounds=2, draw=77)
    story.ready()
    story.built()
    story.scored(0)
    (opening,) = [action for action in plan(story.state, given, story.now) if isinstance(action, OpenRound)]
    story.tell(RoundOpened, round=1, nodes=opening.nodes, wanted=opening.wanted, quorum=opening.quorum)
    for name in opening.nodes:
        story.failed(1, name, retryable=False)
    actions = plan(story.state, given, story.now)
    assert not [action for action in actions if isinstance(action, WidenRound)]
    assert [action for action in actions if isinstance(action, GiveUp)]


def test_where_chance_is_counted_a_node_is_drawn_as_often_when_others_are_away():
    given, here = central(200, 0.1), names(5)
    assert sampling.is_counted(given)
    cohorts = [sampling.drawn(given, number, 9, here) for number in range(2000)]
    share = sum("n0000" in cohort for cohort in cohorts) / 2000
    assert share == pytest.approx(0.1, abs=5 * math.sqrt(0.1 * 0.9 / 2000))
    assert () in cohorts, "then the round waits"
