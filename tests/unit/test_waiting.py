from datetime import timedelta

import pytest

from fedctl.events import NodeDeclined
from fedctl.records import TaskKey
from fedctl.report import report
from fedctl.waiting import stragglers, waiting
from tests.unit.runs import Story


def begun(*names, round=1, **more):
    """A round that all nodes have begun to train for."""
    story = Story(*(names or ("alice", "bob", "carol", "dave")), **more)
    story.ready()
    story.built()
    opened(story, round)
    return story


def opened(story, round):
    story.opened(round)
    for name in story.nodes:
        story.started(round, name)


def late(story, seconds=0.0):
    return stragglers(story.state, story.now + timedelta(seconds=seconds), story.progress)


def causes(story, seconds=60.0):
    return {one.node: one.cause for one in late(story, seconds)}


def test_nobody_is_late_before_half_of_the_updates_are_in():
    story = begun()
    story.trained(1, "alice")
    assert not late(story, 3600)
    story.trained(1, "bob")
    assert [one.node for one in late(story, 3600)] == ["carol", "dave"]


def test_a_straggler_takes_more_than_one_and_a_half_times_the_median():
    story = begun()
    story.trained(1, "alice", after=8.8)
    story.trained(1, "bob", after=2.0)
    assert not late(story, 4.4)
    carol, dave = late(story, 12.0)
    assert (carol.node, dave.node) == ("carol", "dave")
    assert carol.seconds == pytest.approx(24.0)
    assert carol.ratio == pytest.approx(24.0 / 11.0)


def test_of_a_second_or_two_nobody_is_told():
    story = begun("alice", "bob")
    story.trained(1, "alice", after=0.1)
    assert not late(story, 1.5)
    assert late(story, 3.0)


def test_nodes_that_failed_for_good_are_neither_late_nor_waited_for():
    story = begun()
    story.failed(1, "carol")
    story.failed(1, "dave")
    story.trained(1, "alice")
    assert [one.node for one in late(story, 60)] == ["bob"]
    story.started(1, "dave", attempt=2)
    story.trained(1, "bob")
    assert [one.node for one in late(story, 60)] == ["dave"]


def test_time_without_a_coordinator_is_not_counted():
    story = begun("alice", "bob", "carol")
    story.trained(1, "alice")
    story.trained(1, "bob")
    story.resumed(after=3600, absent_s=3600)
    (carol,) = late(story, 30)
    assert carol.seconds < 60
    story.started(1, "carol")
    story.trained(1, "carol", after=1)
    story.aggregated(1)
    assert sum(one.seconds for one in waiting(story.state)) < 60


@pytest.mark.parametrize(
    ("phase", "cause"),
    [
        ("waiting", "compute"),
        ("loading", "compute"),
        ("training", "compute"),
        ("saving", "line"),
        ("unreachable", "line"),
    ],
)
def test_what_is_told_of_a_task_says_what_keeps_it(phase, cause):
    story = begun("alice", "bob")
    story.trained(1, "alice")
    story.working(TaskKey(round=1, node="bob"), phase=phase)
    assert causes(story) == {"bob": cause}


def test_a_node_whose_model_is_still_on_its_way_is_kept_by_the_line():
    story = Story("alice", "bob")
    story.ready()
    story.built()
    story.opened(1)
    story.started(1, "alice")
    story.trained(1, "alice")
    assert causes(story) == {"bob": "line"}


def test_where_nothing_is_told_the_last_round_tells():
    story = begun("alice", "bob", "carol")
    story.trained(1, "alice")
    story.trained(1, "bob", line_s=90)
    story.trained(1, "carol", line_s=1)
    story.aggregated(1)
    opened(story, 2)
    story.trained(2, "alice")
    assert causes(story) == {}
    story.failed(2, "carol", retryable=False)
    assert causes(story) == {"bob": "line"}


def test_a_lost_node_is_late_for_as_long_as_it_is_waited_for():
    story = begun("alice", "bob", patience_s=300.0)
    story.trained(1, "alice")
    story.lost("bob")
    assert causes(story) == {"bob": "line"}
    assert causes(story, 301) == {}
    story.tell(NodeDeclined, node="bob", reason="outside its hours", seconds=60)
    assert causes(story) == {}


def test_between_rounds_nobody_is_late():
    assert not late(Story(), 60)


def closed(story, number, came, **more):
    """A round whose updates came so many seconds after one another."""
    opened(story, number)
    for name, after in came.items():
        story.trained(number, name, after=after, **more.get(name, {}))
    story.aggregated(number, *came)


def test_each_instant_after_the_first_half_is_shared_among_those_not_yet_in():
    story = begun(round=1)
    for name, after in (("alice", 10), ("bob", 5), ("carol", 6), ("dave", 20)):
        story.trained(1, name, after=after)
    story.aggregated(1)
    dave, carol = waiting(story.state)
    assert (dave.node, dave.seconds, dave.share) == ("dave", pytest.approx(23), pytest.approx(23 / 26))
    assert (carol.node, carol.seconds, carol.share) == ("carol", pytest.approx(3), pytest.approx(3 / 26))


def test_of_an_odd_number_the_middle_one_is_of_the_first_half():
    story = begun("alice", "bob", "carol")
    for name, after in (("alice", 1), ("bob", 10), ("carol", 4)):
        story.trained(1, name, after=after)
    story.aggregated(1)
    assert [(one.node, one.seconds) for one in waiting(story.state)] == [("carol", pytest.approx(4))]


def test_the_waiting_is_summed_over_rounds_and_its_shares_make_one():
    story = begun("alice", "bob", "carol")
    for name, after in (("alice", 1), ("bob", 1), ("carol", 4)):
        story.trained(1, name, after=after)
    story.aggregated(1)
    closed(story, 2, {"carol": 1, "alice": 1, "bob": 12})
    closed(story, 3, {"bob": 1, "alice": 1, "carol": 3})
    assert [(one.node, round(one.seconds, 3)) for one in waiting(story.state)] == [("bob", 12), ("carol", 7)]
    assert sum(one.share for one in waiting(story.state)) == pytest.approx(1)


@pytest.mark.parametrize(("line_s", "cause"), [(0.5, "compute"), (8.0, "compute"), (40.0, "line")])
def test_a_node_was_waited_for_because_of_what_took_it_longer_than_the_median_node(line_s, cause):
    """Its training took 20 seconds and 18 more than the median one's."""
    story = begun("alice", "bob", "carol")
    story.trained(1, "alice", line_s=0.1)
    story.trained(1, "bob", line_s=0.5)
    story.trained(1, "carol", after=20, line_s=line_s)
    story.aggregated(1)
    assert [(one.node, one.cause) for one in waiting(story.state)] == [("carol", cause)]


def test_a_node_whose_training_took_no_longer_was_kept_by_what_came_before_it():
    story = begun("alice", "bob", "carol")
    for name in ("alice", "bob", "carol"):
        story.trained(1, name)
    story.aggregated(1)
    assert [(one.node, one.cause) for one in waiting(story.state)] == [("carol", "queue")]


def test_a_run_without_a_closed_round_has_not_waited():
    assert waiting(begun().state) == ()


def test_the_report_has_it_as_json():
    story = begun("alice", "bob")
    fresh = report(story.state, alive=True).to_json()
    assert (fresh["stragglers"], fresh["waiting"]) == ([], [])
    assert fresh["open"] == {
        "round": 1,
        "nodes": ["alice", "bob"],
        "updates": [],
        "wanted": 2,
        "quorum": 1,
        "max_staleness": 0,
        "step": None,
    }
    story.trained(1, "alice")
    now = story.now + timedelta(seconds=60)
    (straggler,) = report(story.state, alive=True, now=now).to_json()["stragglers"]
    assert set(straggler) == {"node", "cause", "seconds", "ratio"}
    assert report(story.state, alive=False, now=now).to_json()["stragglers"] == []
    story.trained(1, "bob")
    story.aggregated(1)
    (waited,) = report(story.state, alive=True).to_json()["waiting"]
    assert waited == {"node": "bob", "seconds": pytest.approx(2.0), "share": 1.0, "cause": "queue"}


def test_a_node_that_has_scored_a_model_meanwhile_is_still_known_to_train():
    story = begun("alice", "bob")
    story.started(0, "bob", kind="evaluate")
    story.evaluated(0, "bob", 0.5)
    story.trained(1, "alice")
    assert causes(story) == {"bob": "compute"}
    assert [node.state for node in report(story.state, alive=True).nodes] == ["done", "training"]
    assert [node.state for node in report(story.state, alive=False).nodes] == ["done", "unknown"]
