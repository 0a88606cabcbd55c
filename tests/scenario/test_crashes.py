"""The coordinator dies at every event and is started again: the run comes to the same end, to the bit.

Two ways to die: `journal` lets the nodes' work and the files get ahead of what was written down, with the next line cut
off at any place; `sink` stops after an event is written down and before anything follows from it.
"""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl import journal
from fedctl.events import RunStarted, TaskFailed, UpdateReceived
from fedctl.state import RunState
from tests.scenario.calm import assert_calm_end, is_finished, scene, went_on
from tests.scenario.world import Killed, Killer, Scene, dying, federation, of_kind

MOST_EVENTS = 45
TORN = (0.0, 0.02, 0.5, 0.99)


def assert_same_end(made: Scene, state: RunState) -> None:
    assert_calm_end(made, state)
    with journal.Journal(made.run.journal) as written:
        assert not written.was_torn
    accepted = Counter(event.task for event in of_kind(made.events, UpdateReceived))
    assert max(accepted.values()) == 1, "an update was journalled twice"


def test_a_calm_run_has_no_more_events_than_are_killed_at(tmp_path):
    made = scene(tmp_path)
    made.go()
    assert 35 < len(made.events) < MOST_EVENTS


@pytest.mark.parametrize("nth", range(1, MOST_EVENTS))
def test_dying_once_what_was_done_is_ahead_of_the_journal(nth, tmp_path):
    made = scene(tmp_path)
    made.dies(writer=dying(nth, TORN[nth % len(TORN)]))
    assert len(made.events) <= nth
    assert_same_end(made, went_on(made))


@pytest.mark.parametrize("nth", range(1, MOST_EVENTS))
def test_dying_once_an_event_is_written_and_nothing_has_followed(nth, tmp_path):
    made = scene(tmp_path)
    made.dies(Killer(nth))
    assert_same_end(made, went_on(made))


@pytest.mark.parametrize("every", [8, 11, 17])
def test_dying_over_and_over(every, tmp_path):
    made = scene(tmp_path)
    deaths = 0
    while made.dies(writer=dying(every, TORN[deaths % len(TORN)])):
        deaths += 1
        assert deaths < 60, "the run does not get on"
    assert deaths >= 2
    assert len(of_kind(made.events, RunStarted)) == deaths + 1
    assert_same_end(made, made.state)


@given(
    deaths=st.lists(st.tuples(st.sampled_from(["journal", "sink"]), st.integers(1, 40), st.floats(0, 1)), max_size=4),
    jitter=st.integers(0, 2**16),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_dying_at_random_with_answers_in_any_order(deaths, jitter):
    with TemporaryDirectory() as folder:
        made = scene(Path(folder) / "run", jitter=jitter)
        for way, nth, torn in deaths:
            if not is_finished(made):
                made.dies(
                    *([Killer(nth)] if way == "sink" else []), writer=dying(nth if way == "journal" else 999, torn)
                )
        assert_same_end(made, went_on(made))


def test_the_budget_of_attempts_is_remembered(tmp_path):
    """Were it forgotten, each new coordinator would let bob try once more."""
    made = Scene(tmp_path, federation("alice", "bob", "carol", rounds=1, quorum=2, attempts=3))
    made.world.always_failing.add("bob")
    for _ in range(30):
        if not made.dies(writer=dying(9)):
            break
    assert [key.attempt for key in made.world.keys("train") if key.node == "bob"] == [1, 2, 3]
    assert [event.task.attempt for event in of_kind(made.events, TaskFailed)] == [1, 2, 3]


def test_what_another_process_left_half_written_is_swept(tmp_path):
    made = scene(tmp_path)
    assert made.dies(Killer(14))
    for number, half in (
        (1, "model.safetensors.tmp-99"),
        (0, "updates/.bob.safetensors.0123456789ab.part"),
        (1, "updates/.bob.safetensors.tmp-99"),
    ):
        path = made.run.round(number) / half
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    (made.run.path / ".model.safetensors.tmp-99").write_bytes(b"half")
    assert_same_end(made, made.go())


def test_an_update_on_the_disk_that_is_not_the_nodes_is_fetched_again(tmp_path):
    made = scene(tmp_path)
    made.run.update(1, "alice").parent.mkdir(parents=True)
    made.run.update(1, "alice").write_bytes(b"?" * 220)
    assert_same_end(made, made.go())


def test_an_answer_is_booked_once_though_its_task_is_started_twice(tmp_path):
    made = scene(tmp_path)
    made.dies(writer=dying(12))
    state = made.go()
    assert [node.contributions for node in state.nodes.values()] == [2, 2]
    assert all(node.task is None for node in state.nodes.values())


def test_death_is_no_exception_that_anybody_catches():
    assert not issubclass(Killed, Exception)
