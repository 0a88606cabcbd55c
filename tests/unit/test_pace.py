"""How lines are kept to a limit, by a clock of the test's own."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedctl.node.agent import BLOCK
from fedctl.pace import LEAST_BLOCK, LONGEST_DEBT_S, Bandwidth, Pace


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 30)), min_size=1))
def test_so_many_bytes_take_their_time_however_they_come(turns):
    clock = Clock()
    pace, began, sent = Pace(1000.0, clock), clock.now, 0
    for size, idle_s in turns:
        clock.now += pace.book(size)
        sent += size
        assert sent <= 1000.0 * (clock.now - began) * (1 + 1e-9)
        clock.now += idle_s


def test_turns_that_are_taken_at_once_come_one_after_the_other():
    pace = Pace(1000.0, Clock())
    assert [pace.book(500) for _ in range(3)] == [0.5, 1.0, 1.5]


def test_an_idle_line_waits_for_nothing_but_the_bytes_themselves():
    clock = Clock()
    pace = Pace(1000.0, clock)
    pace.book(1000)
    clock.now += 100.0
    assert pace.book(1000) == 1.0


def test_what_cannot_wait_makes_the_others_wait_but_never_for_long():
    pace = Pace(1000.0, Clock())
    pace.count(200)
    assert pace.book(100) == pytest.approx(0.3)
    for _ in range(100):
        pace.count(1000)
    assert pace.book(100) == pytest.approx(LONGEST_DEBT_S + 0.1)


def test_what_cannot_wait_shortens_no_turn_that_was_taken():
    pace = Pace(1000.0, Clock())
    assert pace.book(5000) == 5.0
    pace.count(1000)
    assert pace.book(1000) == 6.0


def test_both_ways_have_the_whole_of_it():
    bandwidth = Bandwidth(8000, Clock())
    assert bandwidth.book(sent=1000, received=0) == 1.0
    assert bandwidth.book(sent=0, received=1000) == 1.0
    assert bandwidth.book(sent=0, received=0) == 0.0
    assert bandwidth.book(sent=1000, received=2000) == 3.0


@pytest.mark.parametrize(
    ("bps", "block"), [(16e3, LEAST_BLOCK), (200e3, LEAST_BLOCK), (8e6, 125_000), (1e9, BLOCK), (math.inf, BLOCK)]
)
def test_blocks_are_small_on_a_narrow_line(bps, block):
    assert Bandwidth(bps).block == block


def test_without_a_limit_nothing_waits():
    assert Bandwidth().book(sent=10**12, received=10**12) == 0.0
