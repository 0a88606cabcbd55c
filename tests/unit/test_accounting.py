"""What was spent: as Opacus says to the digit, and as another library says independently."""

import math

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant

from fedctl.dp.accounting import epsilon, spent, steps_within

TEN = (
    ([(1.0, 1.0, 30)], 1e-3, 31.1362, 33.7229),
    ([(2.0, 1.0, 30)], 1e-3, 11.5486, 12.7274),
    ([(1.0, 0.1, 30)], 1e-3, 2.5729, 3.2042),
    ([(1.0, 0.1, 200)], 1e-3, 7.0962, 8.2541),
    ([(1.0, 0.01, 1000)], 1e-5, 1.8282, 2.1014),
    ([(4.0, 1.0, 10)], 1e-5, 3.3414, 3.6171),
    ([(0.8, 0.05, 100)], 1e-5, 5.7412, 6.6583),
    ([(1.5, 0.02, 2000)], 1e-6, 3.2328, 3.4833),
    ([(0.6, 0.3, 5)], 1e-4, 10.3010, 11.9516),
    ([(1.0, 0.02, 300), (0.8, 0.05, 100), (3.0, 1.0, 3)], 1e-5, 6.6258, 7.5430),
)
"""History, delta, and what Google's dp-accounting 0.6.0 says: its PLDAccountant, and its RdpAccountant.

It composes `SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps)`, and without the sampling
where the rate is 1.
"""

ten = pytest.mark.parametrize(("history", "delta", "exact", "rdp"), TEN)


@ten
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:Optimal order:UserWarning")
def test_it_is_what_opacus_says(history, delta, exact, rdp):
    accountants = {"prv": PRVAccountant(), "rdp": RDPAccountant()}
    for accountant in accountants.values():
        for noise, rate, steps in history:
            for _ in range(steps):
                accountant.step(noise_multiplier=noise, sample_rate=rate)
    found = spent(history, delta)
    assert found.accountant == "prv"
    assert found.epsilon == pytest.approx(accountants["prv"].get_epsilon(delta), abs=1e-3)
    assert epsilon(history, delta, is_discrete=True) == pytest.approx(accountants["rdp"].get_epsilon(delta), abs=1e-3)


@ten
def test_an_independent_library_agrees(history, delta, exact, rdp):
    """Never less than the exact value, and more by no more than the numerical error that is allowed."""
    assert exact <= epsilon(history, delta) <= exact + 0.012
    assert epsilon(history, delta, is_discrete=True) == pytest.approx(rdp, rel=0.01)


def test_nothing_costs_nothing_and_no_noise_costs_everything():
    assert epsilon([], 1e-5) == epsilon([(1.0, 1.0, 0)], 1e-5) == 0
    assert epsilon([(1.0, 1.0, 3), (0.0, 0.1, 1)], 1e-5) == math.inf


def test_where_the_grid_would_be_too_large_the_other_bound_is_given():
    found = spent([(0.3, 1.0, 1000)], 1e-5)
    assert found.accountant == "rdp"
    assert 6_000 < found.epsilon < 7_000


def test_like_steps_count_together_in_any_order():
    split = [(1.0, 0.1, 20), (2.0, 0.1, 5), (1.0, 0.1, 10)]
    assert epsilon(split, 1e-5) == epsilon([(1.0, 0.1, 30), (2.0, 0.1, 5)], 1e-5)
    assert epsilon([[1.0, 0.1, 30]], 1e-5) == epsilon([(1.0, 0.1, 30)], 1e-5), "as it comes from JSON"


@pytest.mark.parametrize("step", [(-1, 1, 1), (math.nan, 1, 1), (1, 0, 1), (1, 1.1, 1), (1, 1, -1), (1, 1, 1.5)])
def test_what_is_no_history_is_refused(step):
    with pytest.raises(ValueError, match="no step of a history"):
        epsilon([step], 1e-5)


@pytest.mark.parametrize("delta", [0, 1, -0.1])
def test_delta_is_a_small_probability(delta):
    with pytest.raises(ValueError, match="delta should be"):
        epsilon([(1, 1, 1)], delta)


@pytest.mark.parametrize(("budget", "history"), [(3.0, []), (3.0, [(1.0, 0.1, 10)])])
def test_a_budget_is_used_up_and_never_overdrawn(budget, history):
    left = steps_within(budget, (1.0, 0.1), 1e-5, history=history)
    assert left > 0
    assert epsilon([*history, (1.0, 0.1, left)], 1e-5) <= budget < epsilon([*history, (1.0, 0.1, left + 1)], 1e-5)


def test_a_budget_may_be_gone_and_may_be_more_than_is_asked_for():
    assert steps_within(2.0, (1.0, 1.0), 1e-5) == 0
    assert steps_within(8.0, (20.0, 0.01), 1e-5, most=50) == 50
