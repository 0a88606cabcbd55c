"""Rounds whose updates are masked, as `plan` sees them: what each step asks, of whom, and what closes or ends it."""

import random
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedctl.secure
from fedctl.actions import Aggregate, Cancel, CloseStep, GiveUp, Hold, Perform, Prepare
from fedctl.events import (
    Event,
    MessageReceived,
    NodeDeclined,
    NodeLost,
    RoundAbandoned,
    RoundHeld,
    RunFailed,
    StepClosed,
    TaskFailed,
    UpdateLost,
    UpdateReceived,
)
from fedctl.plan import plan
from fedctl.privacy import Privacy, SecureAggregation
from fedctl.records import Kind, TaskKey
from fedctl.secagg.graph import threshold_for
from fedctl.secure import STEPS, degree_of
from fedctl.state import Received, Said, apply, fold
from tests.unit.runs import Story, blob
from tests.unit.test_plan import federation

NAMES = ("alice", "bob", "carol", "dave")
SECURE = SecureAggregation(threshold=0.7, patience_s=30.0)


class Masked(Story):
    """A run whose first round is open and asks these nodes for masked updates."""

    def __init__(self, *names: str, quorum: int = 3, wanted: int = 0, secure: SecureAggregation = SECURE, **schedule):
        super().__init__(*(names or NAMES), rounds=2)
        described = federation(*self.nodes, quorum=quorum, **{"attempts": 2, **schedule})
        self.federation = replace(described, privacy=Privacy(secure_aggregation=secure))
        self.ready()
        self.built()
        self.scored(0)
        self.opened(1, secure=True, wanted=wanted or len(self.nodes), quorum=quorum)

    def plan(self, after: float = 0.0, *, hold: bool = False) -> list:
        return plan(self.state, self.federation, self.now + timedelta(seconds=after), hold=hold)

    def answer(self, step: Kind, *names: str, attempt: int = 1) -> "Masked":
        for name in names or self.nodes:
            if step == "train":
                self.trained(1, name, attempt=attempt)
            else:
                key = TaskKey(round=1, node=name, kind=step, attempt=attempt)
                self.tell(MessageReceived, task=key, message=blob("e"), seconds=0.1)
        return self

    def close(self, step: Kind, *names: str) -> "Masked":
        self.tell(StepClosed, round=1, step=step, nodes=tuple(sorted(names or self.nodes)))
        return self

    def up_to(self, step: Kind, *names: str) -> "Masked":
        """All before that step is done by these nodes."""
        for done in STEPS[: STEPS.index(step)]:
            self.answer(done, *names).close(done, *names)
        return self


def asked(actions) -> list[str]:
    assert all(isinstance(action, Perform) for action in actions), actions
    return [action.key for action in actions]


def work(story: Masked, after: float = 0.0) -> list:
    """What is planned beside looking for nodes that are away."""
    return [action for action in story.plan(after=after) if not isinstance(action, Prepare)]


def letter(step: Kind) -> str:
    return str(TaskKey(round=1, node="alice", kind=step)).rpartition("/")[2][0]


def end_of(step: Kind, *names: str) -> CloseStep | Aggregate:
    """What follows once these have done a step."""
    nodes = names or NAMES
    if step == "unmask":
        return Aggregate(round=1, contributors=nodes)
    return CloseStep(round=1, step=step, nodes=nodes)


every_step = pytest.mark.parametrize("step", STEPS)


@every_step
def test_a_step_asks_all_who_did_the_one_before_and_knows_who_did_each(step):
    story = Masked().up_to(step)
    actions = story.plan()
    assert asked(actions) == [f"r0001/{name}/{letter(step)}1" for name in NAMES]
    for action in actions:
        assert dict(action.steps) == dict.fromkeys(STEPS[: STEPS.index(step)], NAMES)
        assert dict(action.models) == ({"base": story.state.model} if step == "train" else {}), (
            "models are for training"
        )


@every_step
def test_a_step_closes_when_all_have_done_it(step):
    story = Masked().up_to(step).answer(step, *NAMES[:-1])
    assert asked(story.plan()) == [f"r0001/dave/{letter(step)}1"]
    story.answer(step, "dave")
    assert story.plan() == [end_of(step)]
    assert story.plan() == [end_of(step)], "planning remembers nothing"


@every_step
def test_a_node_that_fails_is_asked_again_and_then_left_out(step):
    story = Masked().up_to(step).answer(step, *NAMES[:-1])
    story.failed(1, "dave", kind=step)
    assert asked(story.plan()) == [f"r0001/dave/{letter(step)}2"]
    story.failed(1, "dave", kind=step, attempt=2)
    is_late = step in ("agree", "unmask")  # the sum is of all who trained, whoever helps to unmask it
    assert story.plan() == [end_of(step, *(NAMES if step == "unmask" else NAMES[:-1]))]
    if step != "unmask":
        story.close(step, *NAMES[:-1])
        following = STEPS[STEPS.index(step) + 1]
        assert asked(story.plan()) == [f"r0001/{name}/{letter(following)}1" for name in NAMES[:-1]]
    if is_late:
        assert story.state.open.steps["train"] == NAMES


@every_step
def test_a_refusal_is_final(step):
    story = Masked().up_to(step).answer(step, *NAMES[:-1])
    story.failed(1, "dave", "secure aggregation: the cohort is not known", kind=step, retryable=False)
    assert story.plan() == [end_of(step, *(NAMES if step == "unmask" else NAMES[:-1]))]


@every_step
def test_a_node_that_is_lost_is_waited_for_as_long_as_the_step_may_take(step):
    story = Masked(deadline_s=50.0).up_to(step).answer(step, *NAMES[:-1])
    story.lost("dave", passing=True)
    assert story.plan() == []
    patience_s = 50.0 if step == "train" else 30.0
    assert work(story, after=patience_s - 8) == []
    assert work(story, after=patience_s) == [end_of(step, *(NAMES if step == "unmask" else NAMES[:-1]))]


@every_step
def test_a_node_that_is_late_is_called_off_and_the_step_goes_on(step):
    story = Masked(deadline_s=50.0).up_to(step).answer(step, *NAMES[:-1])
    patience_s = 50.0 if step == "train" else 30.0
    assert asked(story.plan(after=patience_s - 8)) == [f"r0001/dave/{letter(step)}1"]
    (cancel,) = story.plan(after=patience_s)
    assert cancel == Cancel(
        task=TaskKey(round=1, node="dave", kind=step),
        reason=f"it did not answer in the time of the step `{step}`",
    )
    story.tell(TaskFailed, task=cancel.task, reason=cancel.reason, retryable=False)
    assert story.plan() == [end_of(step, *(NAMES if step == "unmask" else NAMES[:-1]))]


def test_without_a_deadline_a_training_may_take_its_time():
    story = Masked().up_to("train").answer("train", *NAMES[:-1])
    assert asked(story.plan(after=86_400)) == ["r0001/dave/a1"]


@every_step
def test_the_time_of_a_step_begins_as_the_one_before_closes(step):
    story = Masked(deadline_s=50.0)
    for before in STEPS[: STEPS.index(step)]:
        story.now += timedelta(seconds=25)
        story.answer(before).close(before)
    assert asked(story.plan(after=25)) == [f"r0001/{name}/{letter(step)}1" for name in NAMES]


@every_step
def test_with_too_few_the_run_gives_up_and_says_who_is_missing(step):
    story = Masked().up_to(step).answer(step, "alice", "bob")
    story.failed(1, "carol", "the disk is full", kind=step, retryable=False)
    story.lost("dave", "no route to host", passing=False)
    (given_up,) = [action for action in story.plan() if isinstance(action, GiveUp)]
    assert given_up.reason == (
        f"round 1 has 2 of the 3 nodes that its step `{step}` needs (carol: the disk is full; dave: no route to host)"
    )


@pytest.mark.parametrize(
    ("names", "threshold", "quorum", "least"),
    [
        (NAMES[:3], 0.7, 2, {"keys": 3, "shares": 3, "train": 3, "agree": 3, "unmask": 3}),
        (NAMES[:3], 0.6, 1, {"keys": 3, "shares": 3, "train": 3, "agree": 2, "unmask": 2}),
        (NAMES, 0.6, 4, {"keys": 4, "shares": 4, "train": 4, "agree": 3, "unmask": 3}),
        (tuple(f"n{n:02d}" for n in range(10)), 0.7, 5, {"keys": 5, "shares": 7, "train": 7, "agree": 7, "unmask": 7}),
    ],
    ids=["three", "three of which two tell", "a quorum of all", "ten"],
)
def test_how_many_a_step_needs(names, threshold, quorum, least):
    """Three at least, since of two each learns the other's; the quorum; and as many as bring all secrets back."""
    for step, count in least.items():
        for answered in (count, count - 1):
            story = Masked(*names, quorum=quorum, secure=replace(SECURE, threshold=threshold)).up_to(step)
            story.answer(step, *names[:answered])
            for name in names[answered:]:
                story.failed(1, name, kind=step, retryable=False)
            (action,) = story.plan()
            assert isinstance(action, GiveUp) == (answered < count), (step, answered, action)
    assert fedctl.secure.quorum(story.federation, len(names)) == least["train"], "as a plan of the run says"


def abandoned(rounds: int) -> Story:
    """Of three nodes, after a first round that bob was barred for."""
    story = Story(*NAMES[:3], rounds=rounds)
    story.ready()
    story.built()
    story.scored(0)
    story.opened(1, secure=True)
    story.tell(RoundAbandoned, round=1, nodes=("bob",), reason="bob lies")
    story.scored(1)
    return story


def test_nobody_waits_for_a_node_that_is_barred():
    story = abandoned(rounds=2)
    story.tell(NodeDeclined, node="bob", reason="outside its hours", seconds=60.0)
    described = federation(*NAMES[:3], quorum=3, rounds=2)
    assert plan(story.state, described, story.now) == [
        GiveUp(reason="round 2 needs 3 nodes, and 2 can be had (bob: bob lies)")
    ]


def test_a_run_none_of_whose_rounds_came_to_a_model_has_failed():
    story = abandoned(rounds=1)
    assert plan(story.state, federation(*NAMES[:3], rounds=1), story.now) == [
        GiveUp(reason="no round came to a model: their masks did not come off")
    ]


@pytest.mark.parametrize("cohort", [3, 4, 10, 32, 33, 50, 100, 201])
@pytest.mark.parametrize("wanted", [None, 3, 20, 21, 400])
def test_the_plan_asks_for_as_many_as_nodes_themselves_insist_on(cohort, wanted):
    """As `Cohort.quorum` of a cohort of that size and degree, which the round's messages are held to."""
    from tests.unit.secagg import Played, names

    secure = replace(SECURE, neighbours=wanted)
    played = Played(names(cohort), share=secure.threshold, degree=degree_of(secure, cohort)).advertise().gather()
    story = Masked(*names(cohort), quorum=3, secure=secure).up_to("agree")
    story.answer("agree", *names(cohort)[: played.cohort.quorum - 1])
    for name in names(cohort)[played.cohort.quorum - 1 :]:
        story.failed(1, name, kind="agree", retryable=False)
    (given_up,) = story.plan()
    assert f"of the {played.cohort.quorum} nodes" in given_up.reason
    assert played.cohort.threshold == threshold_for(secure.threshold, played.cohort.holders)


def test_the_training_closes_with_as_many_as_are_wanted():
    story = Masked(wanted=3).up_to("train").answer("train", "alice", "carol", "dave")
    assert story.plan() == [end_of("train", "alice", "carol", "dave")]
    story.close("train", "alice", "carol", "dave").started(1, "bob")
    assert asked(story.plan()) == [f"r0001/{name}/g1" for name in ("alice", "carol", "dave")]


def test_hold_waits_for_a_person_once_all_is_there_to_unmask():
    story = Masked().up_to("unmask")
    assert asked(story.plan(hold=True)) == [f"r0001/{name}/u1" for name in NAMES]
    story.answer("unmask")
    assert story.plan(hold=True) == [Hold(round=1)]
    story.tell(RoundHeld, round=1)
    assert story.plan() == []


@every_step
def test_a_resume_goes_on_in_the_step_and_the_time_without_a_coordinator_does_not_count(step):
    story = Masked(deadline_s=50.0).up_to(step).answer(step, "alice")
    before = story.state.open
    story.resumed(after=3600.0, absent_s=3590.0)
    opened = story.state.open
    assert opened.step_at == before.step_at + timedelta(seconds=3590)
    assert (opened.steps, opened.said, opened.answers) == (before.steps, before.said, before.answers)
    assert asked(story.plan()) == [f"r0001/{name}/{letter(step)}1" for name in NAMES[1:]]
    assert asked(story.plan(after=20)) == [f"r0001/{name}/{letter(step)}1" for name in NAMES[1:]], "it has a while more"
    assert all(isinstance(action, Cancel) for action in story.plan(after=60))


@every_step
def test_a_run_that_gave_up_asks_the_same_step_anew(step):
    story = Masked(deadline_s=50.0).up_to(step).answer(step, "alice", "bob")
    for name in ("carol", "dave"):
        story.failed(1, name, kind=step, retryable=False)
    (given_up,) = story.plan()
    story.tell(RunFailed, reason=given_up.reason)
    story.resumed(after=3600.0)
    assert asked(story.plan(after=20)) == [f"r0001/{name}/{letter(step)}2" for name in ("carol", "dave")]
    story.answer(step, "carol", "dave", attempt=2)
    assert story.plan() == [end_of(step)]


@pytest.mark.parametrize("step", ["agree", "unmask"])
def test_an_update_that_was_lost_since_is_asked_for_again_under_its_key_before_anything_else(step):
    story = Masked().up_to(step)
    story.tell(UpdateLost, task=TaskKey(round=1, node="bob"), reason="it is not there")
    assert asked(story.plan()) == ["r0001/bob/a1"]
    assert story.plan()[0].models == {"base": story.state.model}
    story.answer("train", "bob")
    assert asked(story.plan()) == [f"r0001/{name}/{letter(step)}1" for name in NAMES]


@pytest.mark.parametrize("wanted", [3, 4])
def test_a_sum_that_lost_an_update_for_good_is_given_up(wanted):
    """The survivors are signed: no node signs others, and the rest of them are no sum that could be unmasked."""
    story = Masked(wanted=wanted).up_to("agree").answer("agree").close("agree")
    story.tell(UpdateLost, task=TaskKey(round=1, node="bob"), reason="it is not there")
    assert asked(story.plan()) == ["r0001/bob/a1"]
    story.failed(1, "bob", "the node's keys of this round are gone", retryable=False)
    (given_up,) = story.plan()
    assert given_up.reason == (
        "round 1 has 3 of the 4 nodes that its step `train` needs (bob: the node's keys of this round are gone)"
    )


def answered(step: Kind, name: str, at: datetime, digit: str = "9", attempt: int = 1) -> Event:
    key = TaskKey(round=1, node=name, kind=step, attempt=attempt)
    if step == "train":
        return UpdateReceived(at=at, task=key, update=blob(digit), examples=0, metrics={}, seconds=1.0)
    return MessageReceived(at=at, task=key, message=blob(digit), seconds=1.0)


@every_step
def test_what_comes_after_a_step_is_closed_changes_nothing(step):
    story = Masked().up_to(step).answer(step, *NAMES[:-1])
    story.failed(1, "dave", kind=step, retryable=False)
    if step == "unmask":
        story.aggregated(1, *NAMES)
    else:
        story.close(step, *NAMES[:-1])
    at = story.now + timedelta(seconds=5)
    late = [
        answered(step, "dave", at),
        answered(step, "dave", at, attempt=2),
        answered(step, "alice", at),
        TaskFailed(at=at, task=TaskKey(round=1, node="dave", kind=step, attempt=2), reason="x", retryable=True),
        TaskFailed(at=at, task=TaskKey(round=1, node="alice", kind=step), reason="x", retryable=True),
        StepClosed(at=at, round=1, step=step, nodes=NAMES[1:]),
    ]
    for event in late:
        after = apply(story.state, event)
        assert replace(after, last_at=story.state.last_at) == story.state, event


@every_step
def test_a_first_answer_stands(step):
    story = Masked().up_to(step).answer(step, "alice")
    again = apply(story.state, answered(step, "alice", story.now, digit="7"))
    assert again == story.state


def chaotic() -> list[Event]:
    """A round with a failure and a retry in every step, a node that drops out, and a resume in the middle."""
    story = Masked(*NAMES, "erin")
    present = list(story.nodes)
    for step in STEPS:
        story.failed(1, present[0], kind=step)
        story.answer(step, *present[1:]).answer(step, present[0], attempt=2)
        if step == "train":
            story.resumed(absent_s=300.0)
        if step != "unmask":
            present = present if step != "shares" else present[:-1]
            story.close(step, *present)
    story.aggregated(1, *present)
    return story.events


TOLD = chaotic()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_events_that_come_again_however_late_change_nothing(seed):
    """Any earlier answer or closed step, told once more at any place."""
    chance = random.Random(seed)
    again = (MessageReceived, UpdateReceived, StepClosed)
    events: list[Event] = []
    for place, event in enumerate(TOLD):
        events.append(event)
        repeated = (one for one in TOLD[: place + 1] if isinstance(one, again) and chance.random() < 0.1)
        events.extend(replace(one, at=event.at) for one in repeated)
    assert fold(events) == fold(TOLD)


@settings(max_examples=60, deadline=None)
@given(orders=st.tuples(*[st.permutations(NAMES)] * len(STEPS)))
def test_in_whatever_order_answers_come_the_round_comes_to_the_same(orders):
    """Within each step; what the plan then wants is the same, to the word."""
    story = Masked()
    for step, order in zip(STEPS, orders, strict=True):
        for name in order:
            assert asked(story.plan()) == [
                f"r0001/{n}/{letter(step)}1" for n in NAMES if n not in order[: order.index(name)]
            ]
            story.answer(step, name)
        assert story.plan() == [end_of(step)]
        if step != "unmask":
            story.close(step)
    opened = story.state.open
    assert all(isinstance(answer, Received) for answer in opened.answers.values())
    assert all(isinstance(answer, Said) for said in opened.said.values() for answer in said.values())


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_round_always_comes_to_an_end(data):
    """Whatever the nodes do: in a bounded number of events a model is made, or the run gives up with a reason."""
    story = Masked(deadline_s=50.0)
    for _ in range(120):
        actions = work(story)
        if not actions:
            story.now += timedelta(seconds=10)
            continue
        action = data.draw(st.sampled_from(actions))
        match action:
            case CloseStep():
                before = story.state
                story.tell(StepClosed, round=1, step=action.step, nodes=action.nodes)
                assert story.state.open.steps != before.open.steps, "a step that is closed closes no more"
            case Cancel(task=task, reason=reason):
                story.tell(TaskFailed, task=task, reason=reason, retryable=False)
            case Perform(task=task):
                happens = data.draw(
                    st.sampled_from(["well", "well", "well", "fails", "refuses", "lost", "late", "gone"])
                )
                _befall(story, happens, task)
            case Aggregate(contributors=names):
                assert len(names) >= 3
                assert names == story.state.open.steps["train"]
                return
            case GiveUp(reason=reason):
                assert "that its step `" in reason
                return
    raise AssertionError(f"it does not end: {story.plan()}")


def _befall(story: Masked, happens: str, task: TaskKey) -> None:
    match happens:
        case "well":
            story.answer(task.kind, task.node, attempt=task.attempt)
        case "fails" | "refuses":
            story.failed(1, task.node, kind=task.kind, attempt=task.attempt, retryable=happens == "fails")
        case "lost":
            story.tell(NodeLost, node=task.node, reason="no route to host", passing=True)
        case "late":
            story.now += timedelta(seconds=20)
        case "gone" if updates := story.state.open.updates:
            name = min(updates)
            story.tell(UpdateLost, task=updates[name].key, reason="it is not there")


def test_a_plain_round_has_no_steps():
    story = Masked()
    opened = replace(story.state.open, secure=False)
    actions = plan(replace(story.state, open=opened), story.federation, story.now)
    assert asked(actions) == [f"r0001/{name}/a1" for name in NAMES]
