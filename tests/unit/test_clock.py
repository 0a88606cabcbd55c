import time
from datetime import UTC, datetime, timedelta

from fedctl.clock import no_earlier, steady

HOUR = timedelta(hours=1)


def test_a_clock_begins_with_the_wall_clock_and_goes_on():
    before = datetime.now(UTC)
    clock = steady()
    first = clock()
    assert before <= first <= datetime.now(UTC)
    time.sleep(0.01)
    assert clock() >= first + timedelta(seconds=0.01)


def test_a_wall_clock_that_is_set_changes_nothing(monkeypatch):
    clock = steady()
    first = clock()
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert first <= clock() < first + HOUR


def test_a_clock_that_is_behind_is_put_forward_and_goes_on_from_there():
    now = datetime.now(UTC)
    clock = no_earlier(lambda: now, now + 3 * HOUR)
    assert clock() == now + 3 * HOUR
    now += HOUR
    assert clock() == now + 3 * HOUR


def test_a_clock_that_is_right_is_left_as_it_is():
    now = datetime.now(UTC)
    assert no_earlier(lambda: now, now - HOUR)() == now
