"""What noise has given by a run's journal: counted by rounds or by each node's trainings, and held against a budget."""

from dataclasses import replace

import pytest

from fedctl import spending
from fedctl.actions import Aggregate, Finish, OpenRound
from fedctl.dp.accounting import epsilon
from fedctl.errors import ConfigError
from fedctl.events import RoundAggregated, RunFinished
from fedctl.federation import Federation
from fedctl.plan import plan
from fedctl.privacy import DifferentialPrivacy, Privacy, SecureAggregation
from fedctl.report import report
from tests.unit.runs import NAMES, Story, blob
from tests.unit.test_plan import federation

DP = DifferentialPrivacy(mode="central", noise=2.0, clip=1.0)
DELTA = DP.delta


def described(dp: DifferentialPrivacy | None = DP, *nodes: str, rounds: int = 10, **more) -> Federation:
    secure = SecureAggregation() if dp and dp.mode == "distributed" else None
    privacy = Privacy(differential_privacy=dp, secure_aggregation=secure)
    return replace(federation(*(nodes or NAMES[:3]), rounds=rounds, **more), privacy=privacy)


def metered(noise: float, steps: int, rate: float = 0.1) -> dict[str, float]:
    return {"noise": noise, "rate": rate, "steps": steps, "epsilon": 0.0, "delta": DELTA}


class Noisy(Story):
    """A run with noise, whose rounds are closed as `close_round` does."""

    def __init__(self, given: Federation, **more) -> None:
        dp = given.privacy.differential_privacy
        nodes = [node.name for node in given.nodes]
        super().__init__(*nodes, rounds=given.rounds, noise=dp.mode, delta=dp.delta, budget=dp.epsilon, **more)
        self.given = given
        self.ready()
        self.built()
        self.scored(0)

    def spent(self) -> spending.Spending:
        found = spending.spending(self.state, self.given)
        assert found is not None
        return found

    def closed(self, number: int, *contributors: str, **more) -> None:
        self.opened(number, secure=False)
        for name in contributors or self.nodes:
            self.trained(number, name, **more)
        self.aggregate(number, *contributors)
        self.scored(number)

    def aggregate(self, number: int, *contributors: str) -> None:
        now = self.spent()
        self.tell(
            RoundAggregated,
            round=number,
            model=blob(f"{number % 10}"),
            contributors=contributors or self.nodes,
            epsilon=now.epsilon,
            epsilon_next=now.epsilon_next,
        )

    def planned(self) -> list:
        return plan(self.state, self.given, self.now)


def test_without_noise_nothing_is_spent():
    assert spending.spending(Story().state, described(None)) is None
    spending.check_budget(described(None))


@pytest.mark.parametrize("mode", ["central", "distributed"])
def test_rounds_are_counted_as_the_accountant_does(mode):
    story = Noisy(described(replace(DP, mode=mode)))
    for number in (1, 2, 3):
        story.closed(number)
        wanted = epsilon([(2.0, 1.0, number)], DELTA, is_discrete=mode == "distributed")
        following = epsilon([(2.0, 1.0, number + 1)], DELTA, is_discrete=mode == "distributed")
        assert story.state.epsilon == pytest.approx(wanted, rel=1e-9)
        assert story.state.epsilon_next == pytest.approx(following, rel=1e-9)
        assert story.state.history[-1].epsilon == story.state.epsilon
    told = report(story.state, alive=True).privacy
    assert (told.noise, told.delta, told.epsilon) == (mode, DELTA, story.state.epsilon)


def test_a_round_that_only_some_came_to_costs_as_much():
    whole, part = Noisy(described()), Noisy(described())
    whole.closed(1)
    part.closed(1, "alice")
    assert part.state.epsilon == whole.state.epsilon > 0


def test_drawn_cohorts_cost_less():
    nodes = [f"n{number:03d}" for number in range(200)]
    drawn, whole = described(DP, *nodes, cohort=0.2), described(DP, *nodes)
    (ours,) = {Noisy(drawn).spent().epsilon}
    assert ours == epsilon([(2.0, 0.2, 1)], DELTA)
    assert ours < Noisy(whole).spent().epsilon / 2


def test_a_resume_and_a_model_that_is_made_twice_count_no_round_twice():
    calm, shaken = Noisy(described()), Noisy(described())
    for number in (1, 2):
        calm.closed(number)
        shaken.closed(number)
        shaken.resumed()
        shaken.aggregate(number)
    assert shaken.state.epsilon == calm.state.epsilon
    assert shaken.spent() == calm.spent()


def test_a_run_ends_before_it_would_spend_more_than_it_may():
    three = epsilon([(2.0, 1.0, 3)], DELTA)
    story = Noisy(described(replace(DP, epsilon=three)))
    for number in (1, 2, 3):
        (opening,) = story.planned()
        assert isinstance(opening, OpenRound)
        story.closed(number)
    (finish,) = story.planned()
    assert isinstance(finish, Finish)
    four = epsilon([(2.0, 1.0, 4)], DELTA)
    assert finish.reason == (
        f"its privacy budget is spent: ε is {three:.3g}, and one more round would make it {four:.3g} of {three:g}"
    )
    story.tell(RunFinished, reason=finish.reason)
    told = report(story.state, alive=False)
    assert (told.round, told.reason, told.privacy.budget) == (3, finish.reason, three)


def test_a_round_that_is_open_is_closed_whatever_it_costs():
    """It was opened within the budget."""
    story = Noisy(described(replace(DP, epsilon=epsilon([(2.0, 1.0, 1)], DELTA))))
    story.opened(1)
    for name in story.nodes:
        story.trained(1, name)
    assert story.planned() == [Aggregate(round=1, contributors=story.nodes)]


def test_a_run_that_ends_with_its_last_round_blames_no_budget():
    story = Noisy(described(replace(DP, epsilon=epsilon([(2.0, 1.0, 2)], DELTA)), rounds=2))
    story.closed(1)
    story.closed(2)
    assert story.planned() == [Finish()]


@pytest.mark.parametrize("mode", ["central", "distributed"])
def test_a_first_round_beyond_the_budget_is_refused(mode):
    one = epsilon([(2.0, 1.0, 1)], DELTA, is_discrete=mode == "distributed")
    spending.check_budget(described(replace(DP, mode=mode, epsilon=one)))
    with pytest.raises(ConfigError) as error:
        spending.check_budget(described(replace(DP, mode=mode, epsilon=0.9 * one)))
    assert str(error.value) == (
        f"privacy/differential_privacy/epsilon: one round spends {one:.3g}, and the budget is {0.9 * one:g}"
    )
    assert error.value.hint.startswith("raise `noise` (")
    assert error.value.hint.endswith(" lasts for all rounds), or raise `epsilon`"), "with three nodes no draw counts"
    enough = float(error.value.hint.split("(")[1].split()[0])
    is_discrete = mode == "distributed"
    assert epsilon([(enough, 1.0, 10)], DELTA, is_discrete=is_discrete) <= 0.9 * one
    assert epsilon([(enough - 0.1, 1.0, 10)], DELTA, is_discrete=True) > 0.9 * one


def test_where_no_noise_does_none_is_named():
    with pytest.raises(ConfigError) as error:
        spending.check_budget(described(replace(DP, mode="distributed", epsilon=0.1)))
    assert error.value.hint == "raise `noise`, or raise `epsilon`"


def test_with_many_nodes_a_first_round_beyond_the_budget_may_take_fewer_of_them():
    many = [f"n{number:03d}" for number in range(300)]
    with pytest.raises(ConfigError) as error:
        spending.check_budget(described(replace(DP, epsilon=0.5), *many))
    assert "have a round take fewer of the nodes (`schedule: {cohort: 0.1}`), or raise" in error.value.hint


def test_noise_of_gradients_is_counted_node_by_node_and_the_most_of_any_is_told():
    story = Noisy(described(replace(DP, mode="local")))
    story.opened(1)
    story.trained(1, "alice", privacy={**metered(1.0, 20), "epsilon": 2.5})
    story.trained(1, "bob", privacy={**metered(2.0, 20), "epsilon": 1.5})
    assert story.state.epsilon == 2.5, "it has left the node, whatever becomes of the round"
    story.aggregate(1)
    assert story.state.epsilon == pytest.approx(epsilon([(1.0, 0.1, 20)], DELTA))
    story.opened(2)
    story.trained(2, "bob", privacy=metered(0.8, 20))
    story.aggregate(2)
    bobs = [(2.0, 0.1, 20), (0.8, 0.1, 20)]
    assert story.state.epsilon == pytest.approx(epsilon(bobs, DELTA))
    assert story.state.epsilon_next == pytest.approx(epsilon([*bobs, bobs[-1]], DELTA))
    spending.check_budget(described(replace(DP, mode="local", epsilon=1e-3)))


def test_a_models_file_says_what_was_promised():
    story = Noisy(described())
    story.closed(1)
    said = story.spent().metadata
    assert said == {"privacy": "central", "noise": "2", "epsilon": f"{story.spent().epsilon:.6g}", "delta": "1e-05"}


def test_a_training_that_came_too_late_has_been_spent_all_the_same():
    story = Noisy(described(replace(DP, mode="local")))
    story.opened(1)
    story.trained(1, "alice", privacy=metered(1.0, 20))
    story.aggregate(1, "alice")
    story.trained(1, "bob", privacy=metered(0.8, 20))
    assert story.state.nodes["bob"].spent == ((0.8, 0.1, 20),)
