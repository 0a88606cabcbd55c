"""`plan`, in the order in which a run happens, and what holds for every plan."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl import fleet
from fedctl.actions import Aggregate, Cancel, Finish, GiveUp, Hold, OpenRound, Perform, Prepare, WidenRound
from fedctl.events import (
    ModelEvaluated,
    ModelInitialized,
    NodeDeclined,
    NodeLost,
    NodeReady,
    RoundAggregated,
    RoundHeld,
    RoundOpened,
    RoundWidened,
    RunFailed,
    RunFinished,
    RunStarted,
    TaskFailed,
    UpdateReceived,
)
from fedctl.federation import Federation, Node, Schedule, TaskSpec
from fedctl.plan import plan
from fedctl.records import COORDINATOR, Blob, Score, TaskKey
from fedctl.state import NodeState, RunState, apply
from tests.unit.runs import START, Story, blob

HOUR = timedelta(hours=1)


def federation(*names: str, rounds: int = 2, compare: bool = False, seed: int = 7, **schedule) -> Federation:
    return Federation(
        name="digits",
        folder=Path(),
        task=TaskSpec(model="model.py:Net", data="data.py:Data"),
        nodes=tuple(Node(name=name) for name in names or ("alice", "bob", "carol")),
        rounds=rounds,
        compare=compare,
        seed=seed,
        schedule=Schedule(**schedule),
    )


def planned(story: Story, *, hold: bool = False, now: datetime | None = None, **fields) -> list:
    described = federation(*story.nodes, rounds=story.rounds, compare=story.compare, **fields)
    return plan(story.state, described, now or story.now, hold=hold)


def keys(actions) -> list[str]:
    return [action.key for action in actions]


def ready(*names: str, **fields) -> Story:
    """Every node is ready, the first model is there and scored."""
    story = Story(*names, **{"rounds": 2, **fields})
    story.ready()
    story.built()
    story.scored(0)
    return story


def cohort_of(names, here=None, *, round: int = 1, **fields) -> tuple[str, ...]:
    """The cohort that is drawn when these nodes are ready."""
    state = RunState(nodes={name: NodeState(name=name, status="ready") for name in here or names})
    return fleet.cohort(federation(*names, **fields), round, state, START)


def opened(*names: str, **fields) -> Story:
    story = ready(*names, **fields)
    story.opened(1)
    return story


# The beginning


def test_first_every_node_is_made_ready_and_the_model_is_built_all_at_once():
    assert keys(planned(Story())) == ["prepare/alice", "prepare/bob", "prepare/carol", "r0000/coordinator/i1"]


def test_no_round_opens_before_every_node_is_ready_or_lost():
    story = Story()
    story.ready("alice")
    story.built()
    assert keys(planned(story, quorum=2)) == ["prepare/bob", "prepare/carol", "r0000/alice/e1"]
    story.lost("bob")
    story.ready("carol")
    assert "open/1" in keys(planned(story, quorum=2))


def test_a_round_that_is_open_goes_on_while_others_are_made_ready():
    story = opened("alice", "bob")
    story.tell(RunStarted, **started(story))
    story.ready("bob")
    assert keys(planned(story)) == ["prepare/alice", "r0001/bob/a1"]
    story.trained(1, "bob")
    assert keys(planned(story, quorum=1)) == ["prepare/alice"], "alice is waited for"


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_the_first_model_has_its_attempts(attempts):
    story = Story()
    for attempt in range(1, attempts + 1):
        assert f"r0000/coordinator/i{attempt}" in keys(planned(story, attempts=attempts))
        story.failed(0, COORDINATOR, "killed", kind="initialize", attempt=attempt)
    assert planned(story, attempts=attempts) == [GiveUp(reason="the first model could not be built: killed")]
    story.tell(RunFailed, reason="...")
    assert planned(story, attempts=attempts) == []
    story.resumed()
    assert keys(planned(story, attempts=attempts)) == [f"r0000/coordinator/i{attempts + 1}"]


def test_a_run_without_nodes_gives_up_and_says_why():
    story = Story("alice", "bob")
    story.lost("alice")
    story.lost("bob", "permission denied")
    story.built()
    reason = "round 1 needs 2 nodes, and 0 can be had (alice: no route to host; bob: permission denied)"
    assert planned(story) == [GiveUp(reason=reason)]


def test_the_first_model_is_scored_while_the_first_round_opens():
    story = Story("alice", "bob")
    story.ready()
    story.built()
    first = Perform(task=TaskKey(round=0, node="alice", kind="evaluate"), models={"global": blob("0")})
    actions = planned(story)
    assert keys(actions) == ["r0000/alice/e1", "r0000/bob/e1", "open/1"]
    assert actions[0] == first


# The cohort


def test_all_reachable_nodes_by_default():
    story = Story()
    story.ready("alice", "carol")
    story.lost("bob")
    story.built()
    assert planned(story, quorum=2)[-1] == OpenRound(round=1, nodes=("alice", "carol"), wanted=2, quorum=2)


def test_a_quorum_is_of_all_that_the_round_should_have():
    """A node whose entry is mistyped is no reason to go on without it."""
    story = Story()
    story.ready("alice", "carol")
    story.lost("bob", "permission denied")
    story.built()
    assert planned(story)[-1] == GiveUp(reason="round 1 needs 3 nodes, and 2 can be had (bob: permission denied)")


@pytest.mark.parametrize(
    ("share", "nodes", "size"), [(1.0, 10, 10), (0.5, 10, 5), (0.25, 10, 3), (0.01, 10, 1), (3, 10, 3), (20, 10, 10)]
)
def test_a_cohort_is_a_share_or_a_number(share, nodes, size):
    names = [f"n{i}" for i in range(nodes)]
    drawn = cohort_of(names, cohort=share)
    assert len(drawn) == size
    assert list(drawn) == sorted(set(drawn) & set(names))


def test_a_share_is_of_all_nodes_though_some_are_lost():
    names = [f"n{i}" for i in range(10)]
    assert len(cohort_of(names, names[:7], cohort=0.5)) == 5
    assert cohort_of(names, names[:4], cohort=0.5) == tuple(names[:4])


def test_a_cohort_is_drawn_by_seed_and_round_alone():
    names = [f"n{i}" for i in range(30)]
    drawn = [cohort_of(names, cohort=5, round=number) for number in range(1, 20)]
    assert drawn == [cohort_of(names, reversed(names), cohort=5, round=number) for number in range(1, 20)]
    assert len(set(drawn)) > 10
    assert drawn != [cohort_of(names, cohort=5, seed=8, round=number) for number in range(1, 20)]


def test_who_is_away_changes_no_more_of_a_cohort_than_must_be():
    names = [f"n{i}" for i in range(30)]
    whole = cohort_of(names, cohort=5)
    without = cohort_of(names, [name for name in names if name != whole[0]], cohort=5)
    assert len(set(whole) & set(without)) == 4


def test_a_cohort_is_the_same_after_a_resume():
    story = ready(*(f"n{i}" for i in range(9)))
    before = planned(story, cohort=4)
    story.resumed()
    assert planned(story, cohort=4)[-1] == before[-1]


# The round


def test_every_node_of_the_cohort_that_has_not_answered_trains_on_the_newest_model():
    story = opened()
    story.trained(1, "bob")
    assert planned(story) == [
        Perform(task=TaskKey(round=1, node=name), models={"base": blob("0")}) for name in ("alice", "carol")
    ]


def test_nodes_outside_the_cohort_do_not_train():
    story = ready()
    story.tell(RoundOpened, round=1, nodes=("bob",))
    assert keys(planned(story)) == ["r0001/bob/a1"]


def test_a_started_task_stays_planned_so_that_a_resume_takes_it_up():
    story = opened("alice")
    story.started(1, "alice")
    assert keys(planned(story)) == ["r0001/alice/a1"]
    story.resumed()
    assert keys(planned(story)) == ["r0001/alice/a1"]


def test_a_retryable_failure_is_tried_again_within_the_attempts():
    story = opened()
    for attempt in (1, 2, 3):
        assert f"r0001/bob/a{attempt}" in keys(planned(story, attempts=3))
        story.failed(1, "bob", attempt=attempt)
    assert keys(planned(story, attempts=3)) == ["r0001/alice/a1", "r0001/carol/a1"]


def test_another_failure_is_not_tried_again():
    story = opened()
    story.failed(1, "bob", retryable=False)
    assert keys(planned(story, attempts=9)) == ["r0001/alice/a1", "r0001/carol/a1"]


def test_a_resume_does_not_renew_the_budget_unless_the_run_had_given_up():
    story = opened("alice", "bob")
    story.trained(1, "alice")
    story.failed(1, "bob")
    story.failed(1, "bob", attempt=2)
    story.resumed()
    assert planned(story, quorum=0.5) == [Aggregate(round=1, contributors=("alice",))]
    story.tell(RunFailed, reason="too few")
    story.resumed()
    assert keys(planned(story)) == ["r0001/bob/a3"]
    story.failed(1, "bob", attempt=3)
    assert keys(planned(story)) == ["r0001/bob/a4"]
    story.failed(1, "bob", attempt=4)
    assert isinstance(planned(story, quorum=1.0)[0], GiveUp)


def test_a_node_that_is_lost_at_a_resume_is_waited_for_as_long_as_patience_lasts():
    story = opened()
    story.trained(1, "alice")
    story.trained(1, "bob")
    story.tell(RunStarted, **started(story))
    story.ready("alice", "bob")
    story.lost("carol")
    assert planned(story, quorum=2) == []
    over = story.now + timedelta(minutes=5)
    assert planned(story, quorum=2, now=over)[-1] == Aggregate(round=1, contributors=("alice", "bob"))
    reason = "round 1 has 2 of the 3 updates it needs (carol: no route to host)"
    assert planned(story, quorum=3, now=over)[-1] == GiveUp(reason=reason)


def test_an_update_of_a_node_that_is_lost_later_counts():
    story = opened("alice", "bob")
    story.trained(1, "bob")
    story.tell(RunStarted, **started(story))
    story.ready("alice")
    story.lost("bob")
    story.trained(1, "alice")
    assert planned(story)[-1] == Aggregate(round=1, contributors=("alice", "bob"))


@pytest.mark.parametrize(
    ("quorum", "updates", "met"),
    [(1.0, 3, True), (1.0, 2, False), (0.8, 2, False), (0.6, 2, True), (2, 2, True), (3, 2, False), (0.1, 1, True)],
)
def test_the_quorum(quorum, updates, met):
    story = opened()
    for name in story.nodes[:updates]:
        story.trained(1, name)
    for name in story.nodes[updates:]:
        story.failed(1, name, retryable=False)
    (action,) = planned(story, quorum=quorum)
    assert isinstance(action, Aggregate if met else GiveUp)


def test_giving_up_says_what_each_missing_node_said():
    story = opened()
    story.trained(1, "alice")
    story.failed(1, "bob", "KeyError: 'label'", retryable=False)
    story.resumed()
    story.failed(1, "carol", "it diverged", retryable=False)
    reason = "round 1 has 1 of the 3 updates it needs (bob: KeyError: 'label'; carol: it diverged)"
    assert planned(story) == [GiveUp(reason=reason)]


def test_contributors_are_in_the_order_of_names():
    story = opened()
    for name in ("carol", "alice", "bob"):
        story.trained(1, name)
    assert planned(story) == [Aggregate(round=1, contributors=("alice", "bob", "carol"))]


# The deadline


def test_past_the_deadline_the_unanswered_are_cancelled():
    story = opened()
    story.trained(1, "alice")
    story.failed(1, "bob")
    now = story.state.open.opened_at + HOUR
    assert keys(planned(story, now=now - timedelta(seconds=1), deadline_s=3600)) == ["r0001/bob/a2", "r0001/carol/a1"]
    assert planned(story, now=now, deadline_s=3600) == [
        Cancel(task=TaskKey(round=1, node="bob", attempt=2), reason="the deadline of 3600 s passed"),
        Cancel(task=TaskKey(round=1, node="carol"), reason="the deadline of 3600 s passed"),
    ]
    assert keys(planned(story, now=now + 99 * HOUR)) == ["r0001/bob/a2", "r0001/carol/a1"], "without a deadline"


def test_what_was_cancelled_is_over():
    story = opened("alice", "bob")
    story.trained(1, "alice")
    story.failed(1, "bob", "the deadline passed", retryable=False)
    assert planned(story, now=story.now + HOUR, deadline_s=60, quorum=1) == [
        Aggregate(round=1, contributors=("alice",))
    ]


def test_the_deadline_does_not_count_the_time_without_a_coordinator():
    """What nodes did meanwhile is still wanted; what was used up before is used up."""
    story = opened()
    story.now += HOUR / 2
    story.resumed(after=12 * 3600, absent_s=12 * 3600)
    left = story.state.open.opened_at + 13 * HOUR
    assert all(isinstance(action, Perform) for action in planned(story, deadline_s=3600, now=left - HOUR / 60))
    assert all(isinstance(action, Cancel) for action in planned(story, deadline_s=3600, now=left))


def test_a_resume_past_the_deadline_leaves_time_to_take_what_is_done():
    story = opened()
    story.resumed(after=3 * 3600)
    at = story.state.resumed_at
    assert all(isinstance(a, Perform) for a in planned(story, deadline_s=3600, now=at + timedelta(seconds=59)))
    assert all(isinstance(a, Cancel) for a in planned(story, deadline_s=3600, now=at + timedelta(seconds=60)))


def test_a_node_is_told_to_hand_in_what_it_has_shortly_before_the_deadline():
    story = opened("alice")
    at = story.state.open.opened_at
    seconds = [
        planned(story, now=at + timedelta(seconds=s), deadline_s=100, partial=True)[0].seconds for s in (0, 50, 95)
    ]
    assert seconds == [90, 40, 1]
    assert planned(story, now=at, deadline_s=100)[0].seconds is None
    assert planned(story, now=at)[0].seconds is None


# Fleets


def test_more_are_asked_than_are_wanted_and_the_first_are_taken():
    names = [f"n{i:02d}" for i in range(30)]
    story = ready(*names)
    fields = {"cohort": 10, "overprovision": 1.3}
    (action,) = planned(story, **fields)
    assert (len(action.nodes), action.wanted, action.quorum) == (13, 10, 8)
    story.tell(RoundOpened, round=1, nodes=action.nodes, wanted=10, quorum=8)
    for name in action.nodes[3:]:
        story.started(1, name)
    for name in reversed(action.nodes[3:]):
        assert all(isinstance(one, Perform) for one in planned(story, **fields))
        story.trained(1, name)
    assert planned(story, **fields) == [Aggregate(round=1, contributors=action.nodes[3:])]
    story.trained(1, action.nodes[0])
    assert planned(story, **fields) == [Aggregate(round=1, contributors=action.nodes[3:])], "one that came too late"


def test_what_is_trained_for_a_closed_round_is_stopped():
    story = ready("alice", "bob", "carol")
    story.tell(RoundOpened, round=1, nodes=("alice", "bob", "carol"), wanted=2, quorum=2)
    for name in story.nodes:
        story.started(1, name)
    story.trained(1, "alice")
    story.trained(1, "carol")
    story.aggregated(1, "alice", "carol")
    stale = Cancel(task=TaskKey(round=1, node="bob"), reason="the round was closed without it")
    assert stale in planned(story)
    assert story.state.history[-1].failed == (), "it was not needed"
    story.failed(1, "bob", stale.reason, retryable=False)
    assert stale not in planned(story)
    assert story.state.nodes["bob"].strikes == 0


def test_a_node_that_goes_away_is_looked_for_ever_more_rarely_and_comes_back_to_its_task():
    story = opened("alice", "bob")
    story.trained(1, "alice")
    story.started(1, "bob")
    began = story.now
    asked = []
    while (story.now - began) < HOUR / 4:
        story.lost("bob")
        pause = 0
        while not (actions := planned(story, now=story.now + timedelta(seconds=pause), patience_s=None)):
            pause += 1
        assert keys(actions) == ["prepare/bob"]
        asked.append(pause)
        story.now += timedelta(seconds=pause)
    assert asked[0] <= 3
    assert asked == sorted(asked) or max(asked) > 60
    assert len(asked) < 30
    story.ready("bob")
    assert keys(planned(story)) == ["r0001/bob/a1"], "no attempt was spent"


def test_one_that_was_never_here_is_not_waited_for_and_may_join_later():
    story = Story("alice", "bob")
    story.ready("alice")
    story.lost("bob")
    story.built()
    story.scored(0)
    assert keys(planned(story, quorum=1)) == ["prepare/bob", "open/1"]
    story.tell(RoundOpened, round=1, nodes=("alice",))
    story.trained(1, "alice")
    story.ready("bob")
    story.aggregated(1, "alice")
    story.scored(1)
    assert planned(story, quorum=1)[-1].nodes == ("alice", "bob")


def test_one_that_will_not_come_back_by_itself_is_not_waited_for():
    story = opened("alice", "bob")
    story.trained(1, "alice")
    story.lost("bob", "the host key has changed", passing=False)
    assert planned(story, quorum=1) == [Aggregate(round=1, contributors=("alice",))]


def test_a_trouble_is_over_with_an_answer_or_after_a_while_of_calm():
    story = opened("alice", "bob")
    story.lost("bob")
    first = story.state.nodes["bob"].trouble_at
    story.ready("bob")
    story.lost("bob")
    assert story.state.nodes["bob"].trouble_at == first, "it only flickered"
    story.ready("bob")
    story.now += timedelta(seconds=61)
    story.lost("bob")
    assert story.state.nodes["bob"].trouble_at == story.now
    story.ready("bob")
    story.failed(1, "bob")
    assert story.state.nodes["bob"].trouble_at is None


def test_a_round_that_cannot_reach_its_quorum_takes_in_others():
    names = ("alice", "bob", "carol", "dave")
    story = ready(*names)
    story.tell(RoundOpened, round=1, nodes=("alice", "bob"))
    story.trained(1, "alice")
    story.failed(1, "bob", retryable=False)
    (action,) = planned(story, cohort=2, quorum=2)
    assert isinstance(action, WidenRound)
    assert len(action.nodes) == 1
    story.tell(RoundWidened, round=1, nodes=action.nodes)
    (added,) = action.nodes
    assert keys(planned(story, cohort=2, quorum=2)) == [f"r0001/{added}/a1"]
    story.trained(1, added)
    assert planned(story, cohort=2, quorum=2) == [Aggregate(round=1, contributors=("alice", added))]


def test_a_node_that_fails_round_after_round_rests_for_ever_more_of_them():
    names = ("alice", "bob", "carol", "dave")
    story, took_part = ready(*names, rounds=40), []
    for number in range(1, 40):
        nodes = planned(story, quorum=0.5, attempts=1)[-1].nodes
        story.tell(RoundOpened, round=number, nodes=nodes)
        if "bob" in nodes:
            took_part.append(number)
            story.failed(number, "bob", retryable=False)
        for name in set(nodes) - {"bob"}:
            story.trained(number, name)
        story.aggregated(number, *sorted(set(nodes) - {"bob"}))
        story.scored(number)
    assert took_part == [1, 2, 4, 8, 16, 32]
    assert "bob" in planned(story, quorum=1.0, attempts=1)[-1].nodes, "it is asked before the quorum is missed"


def test_nodes_whose_owners_do_not_want_them_used_now_are_waited_for_without_end():
    story = ready("alice", "bob")
    story.tell(NodeDeclined, node="bob", reason="outside its hours", seconds=3600)
    assert planned(story) == []
    assert planned(story, now=story.now + timedelta(seconds=3599)) == []
    assert keys(planned(story, now=story.now + timedelta(seconds=3600))) == ["prepare/bob"]
    assert keys(planned(story, quorum=1)) == ["open/1"], "where the others are enough it is not waited for"


def test_a_node_whose_owner_names_no_time_is_asked_ever_more_rarely():
    story, pauses = ready("alice", "bob"), []
    for _ in range(20):
        story.tell(NodeDeclined, node="bob", reason="on battery", seconds=0)
        asked = story.now
        while not planned(story):
            story.now += timedelta(seconds=1)
        pauses.append((story.now - asked).total_seconds())
    assert pauses[0] <= 3
    assert pauses[-1] >= 200


def test_one_that_declines_in_a_round_is_waited_for_where_the_quorum_needs_it():
    story = opened("alice", "bob")
    story.trained(1, "alice")
    story.tell(NodeDeclined, node="bob", reason="on battery", seconds=60)
    assert planned(story) == []
    assert planned(story, quorum=1) == [Aggregate(round=1, contributors=("alice",))]
    late = planned(story, now=story.now + HOUR, deadline_s=600)
    assert late[-1] == GiveUp(reason="round 1 has 1 of the 2 updates it needs (bob: on battery)")


def test_one_that_can_give_a_round_nothing_any_more_is_not_waited_for():
    story = opened("alice", "bob")
    story.trained(1, "alice")
    story.failed(1, "bob", retryable=False)
    story.tell(NodeDeclined, node="bob", reason="on battery", seconds=0.0)
    (action,) = planned(story)
    assert action == GiveUp(reason="round 1 has 1 of the 2 updates it needs (bob: CUDA out of memory)")


def test_one_that_goes_away_while_its_owner_does_not_want_it_used_has_patience_of_its_own():
    story = ready("alice", "bob")
    story.tell(NodeDeclined, node="bob", reason="outside its hours", seconds=8 * 3600.0)
    story.lost("bob", after=8 * 3600)
    assert keys(planned(story)) == ["open/1"], "bob is waited for"
    over = planned(story, now=story.now + timedelta(minutes=5))
    assert over[-1] == GiveUp(reason="round 1 needs 2 nodes, and 1 can be had (bob: no route to host)")


def test_a_node_that_names_a_time_of_no_length_again_and_again_is_asked_ever_more_rarely():
    story = opened("alice", "bob")
    asked = 0
    for _ in range(1800):
        story.now += timedelta(seconds=2)
        if any(isinstance(action, Prepare) for action in planned(story)) or not asked:
            story.tell(NodeDeclined, after=0, node="bob", reason="on battery", seconds=0.01)
            asked += 1
    assert asked < 40


def test_the_last_scores_are_waited_for_as_long_as_patience_lasts():
    story = opened("alice", "bob", rounds=1)
    for name in story.nodes:
        story.trained(1, name)
    story.aggregated(1)
    story.evaluated(1, "alice", 0.5)
    story.lost("bob")
    assert planned(story) == []
    assert planned(story, now=story.now + timedelta(minutes=5)) == [Finish()]


def test_scoring_has_the_same_deadline():
    story = opened("alice")
    story.trained(1, "alice")
    story.aggregated(1)
    late = story.now + HOUR
    assert keys(planned(story, deadline_s=3600, now=late)) == ["cancel/r0001/alice/e1", "open/2"]
    story.resumed(after=9 * 3600)
    assert keys(planned(story, deadline_s=3600)) == ["r0001/alice/e1", "open/2"]


def test_the_first_models_scores_have_their_time_from_when_the_nodes_are_ready():
    story = Story("alice")
    story.now += HOUR
    story.ready()
    story.built()
    assert keys(planned(story, deadline_s=60)) == ["r0000/alice/e1", "open/1"]
    story.opened(1)
    assert "r0000/alice/e1" in keys(planned(story, deadline_s=60))
    assert "cancel/r0000/alice/e1" in keys(planned(story, deadline_s=60, now=story.now + timedelta(seconds=61)))


# Holding


def test_a_held_round_is_not_aggregated_and_nothing_follows():
    story = opened("alice")
    assert keys(planned(story, hold=True)) == ["r0001/alice/a1"]
    story.trained(1, "alice")
    assert planned(story, hold=True) == [Hold(round=1)]
    story.tell(RoundHeld, round=1)
    assert planned(story, hold=True) == []
    story.resumed()
    assert planned(story) == [Aggregate(round=1, contributors=("alice",))]


def test_a_round_short_of_its_quorum_is_not_held():
    story = opened("alice", "bob")
    story.trained(1, "alice")
    story.failed(1, "bob", retryable=False)
    assert isinstance(planned(story, hold=True)[0], GiveUp)


# Scoring


def test_scoring_the_newest_model_overlaps_with_the_next_round():
    story = opened("alice", "bob")
    for name in story.nodes:
        story.trained(1, name)
    story.aggregated(1)
    assert keys(planned(story)) == ["r0001/alice/e1", "r0001/bob/e1", "open/2"]
    story.opened(2)
    story.evaluated(1, "alice", 0.5)
    assert keys(planned(story)) == ["r0001/bob/e1", "r0002/alice/a1", "r0002/bob/a1"]


def test_every_node_scores_also_those_outside_the_cohort():
    story = ready()
    story.tell(RoundOpened, round=1, nodes=("bob",))
    story.trained(1, "bob")
    story.aggregated(1, "bob")
    assert keys(planned(story, cohort=1))[:3] == ["r0001/alice/e1", "r0001/bob/e1", "r0001/carol/e1"]


def test_scores_of_a_model_that_is_no_longer_the_newest_are_not_asked_for():
    story = ready("alice")
    for number in (1, 2):
        story.opened(number)
        story.trained(number, "alice")
        story.aggregated(number)
    assert keys(planned(story)) == ["r0002/alice/e1"]


def test_scores_that_do_not_come_hold_up_nothing_but_the_end():
    story = opened("alice", rounds=1)
    story.trained(1, "alice")
    story.aggregated(1)
    for attempt in (1, 2):
        assert keys(planned(story)) == [f"r0001/alice/e{attempt}"]
        story.failed(1, "alice", kind="evaluate", attempt=attempt)
    assert planned(story) == [Finish()]


# The end


def compared(**fields) -> Story:
    """Two rounds are done, of which bob took part in one and carol in none."""
    story = ready(compare=True, **fields)
    for number, names in ((1, ("alice", "bob")), (2, ("alice",))):
        story.tell(RoundOpened, round=number, nodes=names)
        for name in names:
            story.trained(number, name)
        story.aggregated(number, *names)
        story.scored(number)
    return story


def test_without_a_comparison_the_run_finishes():
    story = ready("alice", rounds=1)
    story.round(1)
    assert planned(story) == [Finish()]


def test_each_node_is_trained_alone_for_as_long_as_it_took_part():
    assert planned(compared()) == [
        Perform(task=TaskKey(round=0, node=name, kind="alone"), models={"base": blob("0")}, passes=passes)
        for name, passes in (("alice", 2), ("bob", 1))
    ]


def test_then_every_node_scores_every_model_then_the_run_finishes():
    story = compared()
    story.trained(0, "bob", kind="alone")
    assert keys(planned(story)) == ["r0000/alice/s1"]
    story.trained(0, "alice", kind="alone")
    models = {"global": blob("2"), "alone/alice": blob("a"), "alone/bob": blob("b")}
    assert planned(story) == [
        Perform(task=TaskKey(round=2, node=name, kind="compare"), models=models) for name in story.nodes
    ]
    for name in story.nodes:
        story.compared(name, dict.fromkeys(models, 0.9))
    assert planned(story) == [Finish()]


def test_nodes_that_go_away_while_they_train_alone_or_score_are_waited_for_as_long_as_patience_lasts():
    story = compared()
    story.trained(0, "alice", kind="alone")
    story.lost("bob")
    assert planned(story) == []
    assert keys(planned(story, now=story.now + timedelta(minutes=5)))[-1] == "r0002/carol/c1"
    story.ready("bob")
    story.trained(0, "bob", kind="alone")
    models = ("global", "alone/alice", "alone/bob")
    for name in ("alice", "carol"):
        story.compared(name, dict.fromkeys(models, 0.9))
    story.lost("bob")
    assert planned(story) == []
    assert planned(story, now=story.now + timedelta(minutes=5)) == [Finish()]


def test_who_failed_alone_is_not_compared():
    story = compared()
    story.trained(0, "alice", kind="alone")
    story.failed(0, "bob", kind="alone", retryable=False)
    assert list(planned(story)[0].models) == ["global", "alone/alice"]


def test_nothing_is_planned_for_a_run_that_is_over():
    for kind, fields in ((RunFinished, {}), (RunFailed, {"reason": "x"})):
        story = opened()
        story.tell(kind, **fields)
        assert planned(story) == []


# Every plan


NAMES = ("alice", "bob", "carol", "dave")


@st.composite
def federations(draw):
    share = st.one_of(st.sampled_from([0.3, 0.5, 1.0]), st.integers(1, 4))
    deadline_s = draw(st.sampled_from([None, 30.0]))
    return federation(
        *NAMES[: draw(st.integers(1, 4))],
        rounds=draw(st.integers(1, 3)),
        compare=draw(st.booleans()),
        cohort=draw(share),
        quorum=draw(share),
        attempts=draw(st.integers(1, 3)),
        overprovision=draw(st.sampled_from([1.0, 1.3, 2.0])),
        deadline_s=deadline_s,
        partial=deadline_s is not None and draw(st.booleans()),
        patience_s=draw(st.sampled_from([None, 1.0, 60.0])),
    )


def natural(action, rng: random.Random, now: datetime):
    """One of the events that the action may end in."""
    match action:
        case Prepare(node=node):
            return _prepared(node, rng, now)
        case OpenRound(round=number, nodes=nodes, wanted=wanted, quorum=quorum):
            return RoundOpened(at=now, round=number, nodes=nodes, wanted=wanted, quorum=quorum)
        case WidenRound(round=number, nodes=nodes):
            return RoundWidened(at=now, round=number, nodes=nodes)
        case Aggregate(round=number, contributors=names):
            return RoundAggregated(at=now, round=number, model=_blob(rng), contributors=names)
        case Hold(round=number):
            return RoundHeld(at=now, round=number)
        case Finish():
            return RunFinished(at=now)
        case GiveUp(reason=reason):
            return RunFailed(at=now, reason=reason)
        case Cancel(task=key):
            return TaskFailed(at=now, task=key, reason="late", retryable=False)
        case Perform(task=key) if key.node != COORDINATOR and rng.random() < 0.1:
            return NodeLost(at=now, node=key.node, reason="x", passing=rng.random() < 0.8)
        case Perform(task=key) if rng.random() < 0.25:
            return TaskFailed(at=now, task=key, reason="x", retryable=rng.random() < 0.7)
        case Perform(task=TaskKey(kind="initialize")):
            return ModelInitialized(at=now, model=_blob(rng))
        case Perform(task=key, models=models) if key.kind in ("evaluate", "compare"):
            scores = {label: Score(examples=1, metrics={}) for label in models}
            return ModelEvaluated(at=now, task=key, scores=scores, seconds=1)
        case Perform(task=key):
            return UpdateReceived(at=now, task=key, update=_blob(rng), examples=1, metrics={}, seconds=1)


def _prepared(node: str, rng: random.Random, now: datetime):
    match rng.random():
        case chance if chance < 0.1:
            return NodeLost(at=now, node=node, reason="x", passing=rng.random() < 0.8)
        case chance if chance < 0.2:
            return NodeDeclined(at=now, node=node, reason="x", seconds=rng.choice([0.0, 60.0, 7200.0]))
        case _:
            return NodeReady(at=now, node=node)


def _blob(rng: random.Random) -> Blob:
    return Blob(digest=f"{rng.getrandbits(256):064x}", size=1)


def started(story: Story) -> dict:
    return {field: getattr(story.events[0], field) for field in story.events[0].__slots__ if field != "at"}


def begun(described: Federation) -> RunStarted:
    return RunStarted(
        at=START,
        run="r",
        federation=described.name,
        seed=described.seed,
        rounds=described.rounds,
        nodes=tuple(node.name for node in described.nodes),
        compare=described.compare,
        metric="val_loss",
        mode="min",
    )


@given(described=federations(), seed=st.integers(0, 2**32), hold=st.booleans())
@settings(max_examples=2000, deadline=None)
def test_whatever_happens_every_plan_gets_on_and_comes_to_an_end(described, seed, hold):
    rng, now, state = random.Random(seed), START, RunState()
    start = begun(described)
    state = apply(state, start)
    for _ in range(2000):
        actions = plan(state, described, now, hold=hold)
        assert actions == plan(state, described, now, hold=hold), "the same state, the same plan"
        assert len(set(keys(actions))) == len(actions), "a key names one action"
        if state.is_over:
            assert actions == []
            return
        if not actions:
            assert any(node.status in ("lost", "away") for node in state.nodes.values()), "a run waits for somebody"
            now += timedelta(seconds=10)
            continue
        if rng.random() < 0.03:
            state = apply(state, replace(start, at=now))
            continue
        action = rng.choice(actions)
        now += timedelta(seconds=rng.choice([0, 1, 10]))
        state = apply(state, natural(action, rng, now))
        after = keys(plan(state, described, now, hold=hold))
        assert action.key not in after, "what was done is not asked for again"
    raise AssertionError("the run comes to no end")


@given(described=federations(), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_plan_asks_no_node_that_is_not_ready_and_none_outside_the_cohort(described, seed):
    rng, now, state = random.Random(seed), START, RunState()
    state = apply(state, begun(described))
    while not state.is_over:
        actions = plan(state, described, now)
        if not actions:
            now += timedelta(seconds=10)
            continue
        for action in actions:
            if isinstance(action, Perform) and action.task.node != COORDINATOR:
                assert state.nodes[action.task.node].status == "ready"
                assert action.task.kind != "train" or action.task.node in state.open.nodes
                assert action.task.attempt <= described.schedule.attempts
            if isinstance(action, Aggregate):
                assert set(action.contributors) <= set(state.open.nodes)
                assert action.contributors
        state = apply(state, natural(rng.choice(actions), rng, now))


def test_the_clock_is_an_argument():
    far = datetime(2100, 1, 1, tzinfo=UTC)
    assert keys(planned(opened(), now=far)) == keys(planned(opened()))
