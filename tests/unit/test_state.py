"""`apply`, event by event: what each one changes, and that a repeated or a late one changes nothing."""

from dataclasses import replace
from datetime import timedelta

import pytest

from fedctl.eventlines import EVENTS, dump, load
from fedctl.events import (
    MessageReceived,
    ModelEvaluated,
    ModelInitialized,
    NodeDeclined,
    NodeLost,
    NodeReady,
    RoundAbandoned,
    RoundAggregated,
    RoundHeld,
    RoundOpened,
    RoundWidened,
    RunFailed,
    RunFinished,
    RunStarted,
    StepClosed,
    TaskFailed,
    TaskStarted,
    UpdateLost,
    UpdateReceived,
)
from fedctl.records import COORDINATOR, Score, TaskKey
from fedctl.state import Failed, Received, RunState, Scored, apply, fold
from fedctl.traffic import Traffic
from tests.unit.runs import SIZE, START, Story, blob, finished, mid_round, preparing

LATER = START + timedelta(days=1)
REPEATABLE = (
    TaskStarted,
    TaskFailed,
    UpdateReceived,
    ModelEvaluated,
    ModelInitialized,
    RoundOpened,
    RoundWidened,
    RoundAggregated,
    RoundAbandoned,
    MessageReceived,
    StepClosed,
)
"""Events that tell of one thing that happens once; the others tell where a coordinator or a node stands."""


def opened() -> Story:
    """Round 1 is open, nothing has been answered."""
    story = Story()
    story.ready()
    story.built()
    story.opened(1)
    return story


def messy() -> Story:
    """Failures, a retry, a lost node, a hold, a give-up and two resumes."""
    story = opened()
    story.started(1, "alice")
    story.failed(1, "bob")
    story.resumed()
    story.started(1, "bob", attempt=2)
    story.trained(1, "alice")
    story.failed(1, "bob", attempt=2)
    story.failed(1, "carol", "KeyError", retryable=False)
    story.tell(RunFailed, reason="too few")
    story.resumed()
    story.failed(1, "bob", attempt=3)
    story.trained(1, "bob", attempt=4)
    story.tell(RoundHeld, round=1)
    story.aggregated(1, "alice", "bob")
    story.resumed()
    story.failed(1, "alice", kind="evaluate")
    story.scored(1)
    story.round(2)
    return story


def roaming() -> Story:
    """Nodes that go and come back, decline and fail; a round is widened, and an update is lost."""
    story = Story("alice", "bob", "carol", "dave")
    story.ready()
    story.built()
    story.tell(RoundOpened, round=1, nodes=("alice", "bob"), wanted=2, quorum=2)
    story.started(1, "alice")
    story.lost("alice")
    story.ready("alice")
    story.tell(NodeDeclined, node="carol", reason="outside its hours", seconds=60.0)
    story.failed(1, "bob", retryable=False)
    story.tell(RoundWidened, round=1, nodes=("dave",))
    story.trained(1, "alice")
    story.tell(UpdateLost, task=TaskKey(round=1, node="alice"), reason="it is not there")
    story.trained(1, "dave", partial=True, steps=17, line_s=0.5)
    story.trained(1, "alice")
    story.aggregated(1, "alice", "dave")
    return story


def masked() -> Story:
    """Two rounds whose updates are masked: a node drops out, another fails and does it again, an update is lost.

    The masks of the second do not come off.
    """
    story = Story("alice", "bob", "carol", "dave")
    story.ready()
    story.built()
    story.opened(1, secure=True, quorum=3)
    present = story.nodes
    for step in ("keys", "shares", "train", "agree", "unmask"):
        story.started(1, "alice", step)
        story.failed(1, "alice", kind=step)
        for name in present:
            if step == "train":
                story.trained(1, name, attempt=2 if name == "alice" else 1)
            else:
                key = TaskKey(round=1, node=name, kind=step, attempt=2 if name == "alice" else 1)
                story.tell(MessageReceived, task=key, message=blob("e"), seconds=0.1)
        if step == "shares":
            present = present[:-1]
        if step != "unmask":
            story.tell(StepClosed, round=1, step=step, nodes=present)
        if step == "train":
            story.resumed()
    story.tell(UpdateLost, task=TaskKey(round=1, node="bob"), reason="it is not there")
    story.trained(1, "bob")
    story.aggregated(1, *present)
    story.opened(2, secure=True, quorum=3)
    story.tell(RoundAbandoned, round=2, nodes=("bob",), reason="too few right shares came to unmask bob")
    return story


STORIES = {
    "roaming": roaming,
    "preparing": preparing,
    "mid-round": mid_round,
    "finished": finished,
    "messy": messy,
    "masked": masked,
}
every_story = pytest.mark.parametrize("story", STORIES.values(), ids=STORIES.keys())


def after(story: Story, kind, **fields) -> tuple[RunState, RunState]:
    before = story.state
    story.tell(kind, **fields)
    return before, story.state


@every_story
def test_folding_is_the_same_from_the_disk(story):
    told = story().events
    assert fold([load(dump(event)) for event in told]) == fold(told)


@every_story
def test_a_repeated_event_changes_nothing_beyond_the_time_however_late_it_comes(story):
    told = story().events
    for end in range(1, len(told) + 1):
        state = fold(told[:end])
        for place, event in enumerate(told[:end]):
            taken_up_since = any(isinstance(other, RunStarted) for other in told[place:end])
            if isinstance(event, TaskStarted) and taken_up_since:
                continue  # a task that is started for a new coordinator is seen at work again
            if any(
                isinstance(other, UpdateLost) and other.task == getattr(event, "task", None) for other in told[:end]
            ):
                continue  # what was lost may come again
            if isinstance(event, REPEATABLE):
                again = apply(state, replace(event, at=LATER))
                assert replace(again, last_at=state.last_at) == state, (event, end)
                assert again.last_at == LATER


@every_story
def test_each_event_told_twice_at_once_is_as_if_told_once(story):
    told = story().events
    assert fold([twice for event in told for twice in (event, event)]) == fold(told)


@every_story
def test_no_event_leaves_the_state_as_it_was(story):
    state = RunState()
    for event in story().events:
        after_it = apply(state, event)
        quiet = isinstance(event, TaskStarted) and event.task.node == COORDINATOR
        assert quiet or replace(after_it, last_at=state.last_at) != state, event
        state = after_it


def test_the_stories_tell_every_kind_of_event():
    told = {type(event).__name__ for story in STORIES.values() for event in story().events}
    assert told == set(EVENTS)


def test_a_run_starts():
    state = Story("alice", "bob", rounds=4, compare=True).state
    assert (state.status, state.rounds, state.compare, state.seed) == ("running", 4, True, 7)
    assert [(node.name, node.status) for node in state.nodes.values()] == [("alice", "new"), ("bob", "new")]
    assert state.started_at == state.resumed_at == START


def test_an_abandoned_round_leaves_the_model_and_bars_a_node_until_the_run_has_given_up():
    story = masked()
    state = story.state
    assert (state.round, state.open, state.model, state.memory) == (2, None, blob("1"), None)
    assert (state.history[-1].contributors, state.history[-1].failed) == ((), ("bob",))
    reason = "too few right shares came to unmask bob"
    assert {name: node.barred for name, node in state.nodes.items()} == {
        name: reason if name == "bob" else "" for name in state.nodes
    }
    story.resumed()
    story.ready("bob")
    assert story.state.nodes["bob"].barred == reason
    story.tell(RunFailed, reason="too few")
    story.resumed()
    assert not story.state.nodes["bob"].barred


def test_the_noise_of_an_abandoned_round_is_spent():
    story = opened()
    _, state = after(story, RoundAbandoned, round=1, nodes=("bob",), reason="lies", epsilon=1.5, epsilon_next=2.1)
    assert (state.epsilon, state.epsilon_next) == (1.5, 2.1)


def test_nodes_become_ready_or_are_lost():
    story = Story()
    story.tell(NodeReady, node="alice", facts={"cpus": 4})
    story.tell(NodeLost, node="bob", reason="no route to host")
    nodes = story.state.nodes
    assert (nodes["alice"].status, nodes["alice"].facts) == ("ready", {"cpus": 4})
    assert (nodes["bob"].status, nodes["bob"].error) == ("lost", "no route to host")
    story.tell(NodeReady, node="bob")
    assert (story.state.nodes["bob"].status, story.state.nodes["bob"].error) == ("ready", None)


@pytest.mark.parametrize("kind", [NodeReady, NodeLost])
def test_a_node_of_no_run_is_nobody(kind):
    before, state = after(Story(), kind, node="mallory", **({"reason": "x"} if kind is NodeLost else {}))
    assert replace(state, last_at=before.last_at) == before


def test_the_first_model_is_the_model():
    story = Story()
    story.failed(0, COORDINATOR, "killed", kind="initialize")
    assert story.state.initialization == Failed(attempt=1, spent=1, reason="killed", retryable=True)
    story.tell(ModelInitialized, model=blob("0"))
    assert story.state.model == story.state.initial == blob("0")
    assert story.state.initialization is None
    story.tell(ModelInitialized, model=blob("1"))
    assert story.state.model == blob("0")


def test_a_round_opens_when_it_is_its_turn():
    story = opened()
    state = story.state
    assert (state.open.number, state.open.nodes, state.open.answers) == (1, ("alice", "bob", "carol"), {})
    for number in (0, 1, 2, 3):
        story.tell(RoundOpened, round=number, nodes=("bob",))
        assert story.state.open == state.open


def test_a_node_is_seen_at_work_and_since_when():
    story = opened()
    story.started(1, "alice")
    at = story.now
    story.started(1, "alice")
    node = story.state.nodes["alice"]
    assert (node.task, node.since, node.attempt, node.round) == (TaskKey(round=1, node="alice"), at, 1, 1)


def test_an_update_is_an_answer_and_frees_its_node():
    story = opened()
    story.started(1, "bob")
    story.trained(1, "bob")
    state = story.state
    assert isinstance(state.open.answers["bob"], Received)
    node = state.nodes["bob"]
    assert (node.task, node.contributions, node.examples, node.error) == (None, 1, 737, None)
    assert node.bytes == state.open.bytes == Traffic(sent=SIZE, received=SIZE)


def test_updates_are_in_the_order_of_names():
    story = opened()
    for name in ("carol", "alice", "bob"):
        story.trained(1, name)
    assert list(story.state.open.updates) == ["alice", "bob", "carol"]


def test_failures_are_counted_and_an_update_makes_up_for_them():
    story = opened()
    story.failed(1, "bob", "first")
    story.failed(1, "bob", "second", attempt=2, detail="Traceback")
    state = story.state
    assert state.open.answers["bob"] == Failed(attempt=2, spent=2, reason="second", retryable=True)
    assert (state.nodes["bob"].error, state.nodes["bob"].detail) == ("second", "Traceback")
    story.trained(1, "bob", attempt=3)
    assert isinstance(story.state.open.answers["bob"], Received)
    assert story.state.nodes["bob"].error is None


def test_a_failure_after_the_update_or_of_an_older_attempt_is_no_news():
    story = opened()
    story.failed(1, "bob", attempt=2)
    before, state = after(story, TaskFailed, task=TaskKey(round=1, node="bob"), reason="old", retryable=False)
    assert state.open == before.open
    assert state.nodes == before.nodes
    story.trained(1, "carol")
    before, state = after(story, TaskFailed, task=TaskKey(round=1, node="carol"), reason="x", retryable=True)
    assert state.open == before.open
    assert state.nodes == before.nodes


def test_an_update_that_comes_after_its_deadline_still_counts_while_the_round_is_open():
    story = opened()
    story.failed(1, "bob", "the deadline passed", retryable=False)
    story.trained(1, "bob")
    assert list(story.state.open.updates) == ["bob"]


def test_what_comes_of_a_closed_round_changes_nothing():
    story = opened()
    for name in ("alice", "bob"):
        story.trained(1, name)
    story.failed(1, "carol", "the deadline passed", retryable=False)
    story.aggregated(1, "alice", "bob")
    story.opened(2)
    story.started(2, "carol")
    key = TaskKey(round=1, node="carol")
    late = [
        (TaskStarted, {"task": key}),
        (TaskFailed, {"task": replace(key, attempt=2), "reason": "it was cancelled", "retryable": False}),
        (UpdateReceived, {"task": key, "update": blob("c"), "examples": 1, "metrics": {}, "seconds": 1.0}),
        (RoundHeld, {"round": 1}),
        (RoundAggregated, {"round": 1, "model": blob("9"), "contributors": ("carol",)}),
    ]
    for kind, fields in late:
        before, state = after(story, kind, **fields)
        assert replace(state, last_at=before.last_at) == before, kind
    assert story.state.nodes["carol"].task == TaskKey(round=2, node="carol"), "it works on round 2"


def test_a_round_is_aggregated():
    story = opened()
    story.trained(1, "alice", after=4)
    story.trained(1, "bob")
    story.failed(1, "carol")
    story.aggregated(1, "alice", "bob")
    state = story.state
    assert (state.round, state.model, state.initial, state.open) == (1, blob("1"), blob("0"), None)
    (report,) = state.history
    assert (report.contributors, report.failed) == (("alice", "bob"), ("carol",))
    assert report.seconds == pytest.approx(7.3)
    assert report.bytes == Traffic(sent=2 * SIZE, received=2 * SIZE)
    assert set(report.fit_seconds) == {"alice", "bob"}


def test_scores_are_kept_by_round_and_the_newest_is_shown():
    story = opened()
    story.evaluated(0, "alice", 0.1)
    assert isinstance(story.state.evaluations[0]["alice"], Scored)
    assert story.state.nodes["alice"].score == Score(examples=100, metrics={"val_acc": 0.1, "val_loss": 0.4})


def test_alone_and_compare_have_places_of_their_own():
    state = finished().state
    assert {*state.alone} == {*state.compared} == {"alice", "bob", "carol"}
    assert state.nodes["alice"].contributions == 10, "training alone contributes to nothing"


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_answers_of_a_node_that_the_run_no_longer_has_are_dropped(kind):
    story = opened()
    key = TaskKey(round=1 if kind == "train" else 0, node="mallory", kind=kind)
    made = {"update": blob("d"), "examples": 1, "metrics": {}} if kind == "train" else {"scores": {}}
    before, state = after(story, UpdateReceived if kind == "train" else ModelEvaluated, task=key, seconds=1, **made)
    assert replace(state, last_at=before.last_at) == before


def test_held_until_the_round_is_closed_by_hand():
    story = opened()
    story.trained(1, "alice")
    story.tell(RoundHeld, round=1)
    assert story.state.status == "held"
    assert story.state.is_over
    story.aggregated(1, "alice")
    assert story.state.status == "running"
    assert story.state.open is None


@pytest.mark.parametrize(
    ("kind", "fields", "status"),
    [(RunFinished, {}, "finished"), (RunFailed, {"reason": "no node is left"}, "failed")],
)
def test_the_end(kind, fields, status):
    story = opened()
    story.tell(kind, **fields)
    assert (story.state.status, story.state.ended_at, story.state.is_over) == (status, story.now, True)
    assert story.state.reason == fields.get("reason")


def test_a_resume_makes_every_node_ready_anew_and_keeps_what_was_answered():
    story = opened()
    story.started(1, "alice")
    story.failed(1, "bob")
    story.trained(1, "carol")
    before = story.state
    story.now += timedelta(hours=1)
    state = apply(before, replace(story.events[0], at=story.now))
    assert {node.status for node in state.nodes.values()} == {"new"}
    assert {node.task for node in state.nodes.values()} == {None}
    assert state.open == before.open, "answers, attempts and their budget"
    assert (state.started_at, state.resumed_at) == (before.started_at, story.now)
    assert state.nodes["carol"].contributions == 1


def test_a_run_that_had_given_up_gets_a_fresh_budget():
    story = opened()
    story.trained(1, "alice")
    story.failed(1, "bob", attempt=2)
    story.failed(1, "carol", "KeyError", retryable=False)
    story.tell(RunFailed, reason="too few")
    story.resumed()
    state = story.state
    assert (state.status, state.reason, state.ended_at) == ("running", None, None)
    assert isinstance(state.open.answers["alice"], Received)
    assert state.open.answers["bob"] == Failed(attempt=2, spent=0, reason="CUDA out of memory", retryable=True)
    assert state.open.answers["carol"] == Failed(attempt=1, spent=0, reason="KeyError", retryable=True)
    assert state.open.opened_at == state.resumed_at


def test_a_first_model_that_had_given_up_gets_a_fresh_budget():
    story = Story()
    story.failed(0, COORDINATOR, kind="initialize")
    story.tell(RunFailed, reason="the first model could not be built")
    story.resumed()
    assert story.state.initialization == Failed(attempt=1, spent=0, reason="CUDA out of memory", retryable=True)


def test_a_resume_of_a_held_run_runs():
    story = opened()
    story.trained(1, "alice")
    story.tell(RoundHeld, round=1)
    story.resumed()
    assert story.state.status == "running"
    assert story.state.open.updates
