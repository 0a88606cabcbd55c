from datetime import timedelta

import pytest

from fedctl import rundir, takeup
from fedctl.federation import Schedule
from fedctl.runstate import RunState
from tests.scenario.world import federation
from tests.unit.runs import START

toy = federation("alice", "bob")


@pytest.fixture
def run(tmp_path):
    return rundir.create(tmp_path, "one", configuration="", bundle=b"", facts={})


def after(seconds):
    return START + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("last_s", "seen_s", "now_s", "absent_s"),
    [
        (None, None, 0, 0),
        (None, 5, 100, 0),
        (10, None, 100, 90),
        (10, 40, 100, 60),
        (50, 40, 100, 50),
        (10, 7200, 100, 90),
        (100, 40, 90, 0),
    ],
    ids=[
        "a new run",
        "a new run whose lock was held before",
        "no lease",
        "a beat after the last event",
        "an event after the last beat",
        "a beat by a clock that is ahead",
        "a clock that went back",
    ],
)
def test_how_long_a_run_was_without_a_coordinator(run, last_s, seen_s, now_s, absent_s):
    state = RunState(last_at=None if last_s is None else after(last_s))
    event = takeup.started(run, state, toy, None if seen_s is None else after(seen_s), after(now_s))
    assert event.absent_s == absent_s


def test_a_start_says_what_the_federation_is(run):
    event = takeup.started(run, RunState(), toy, None, START)
    assert (event.run, event.federation, event.nodes) == ("one", "toy", ("alice", "bob"))
    assert event.patience_s == Schedule().patience_s
