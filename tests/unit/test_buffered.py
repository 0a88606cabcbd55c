"""Rounds that take late updates: `plan` and `apply` over the same events as ever, and what an update then counts."""

from datetime import timedelta

import pytest
import torch

from fedctl import staleness, tidying
from fedctl.actions import Aggregate, Cancel, GiveUp, OpenRound, Perform, WidenRound
from fedctl.aggregation import Late, aggregate_files, aggregate_round
from fedctl.errors import ConfigError
from fedctl.events import NodeDeclined, RoundOpened, RoundWidened, RunStarted, UpdateLost
from fedctl.federation import Named
from fedctl.plan import plan
from fedctl.records import TaskKey
from fedctl.report import report
from fedctl.state import Received
from fedctl.strategies import build
from fedctl.views.sentence import sentence
from fedctl.waiting import stragglers, waiting
from fedctl.weights import Weights, save
from tests.unit.runs import Story, blob
from tests.unit.test_plan import federation, keys
from tests.unit.test_views import drawn

FOUR = ("alice", "bob", "carol", "dave")


def begun(*names: str, rounds: int = 9) -> Story:
    """Every node is ready, the first model is there and scored."""
    story = Story(*(names or FOUR), rounds=rounds)
    story.ready()
    story.built()
    story.scored(0)
    return story


def planned(story: Story, *, now=None, hold: bool = False, **fields) -> list:
    schedule = {"mode": "buffered", "buffer": 2, **fields}
    return plan(story.state, federation(*story.nodes, rounds=story.rounds, **schedule), now or story.now, hold=hold)


def opens(story: Story, *names: str, **fields) -> OpenRound:
    """Open the round that is planned, and have the nodes named begin."""
    (action,) = [one for one in planned(story, **fields) if isinstance(one, OpenRound)]
    facts = {"wanted": action.wanted, "quorum": action.quorum, "max_staleness": action.max_staleness}
    story.tell(RoundOpened, round=action.round, nodes=action.nodes, **facts)
    for name in names:
        story.started(action.round, name)
    return action


def closes(story: Story, number: int, *names: str) -> None:
    """Close a round, whose model those score that may."""
    story.aggregated(number, *names)
    for name in story.nodes:
        if name not in story.state.pending:
            story.evaluated(number, name, 0.5)


def after_one_round() -> Story:
    """alice and bob made the first model; carol has begun, and dave was asked."""
    story = begun()
    opens(story, "alice", "bob", "carol")
    story.trained(1, "alice")
    story.trained(1, "bob")
    closes(story, 1, "alice", "bob")
    return story


# Who is asked


def test_all_nodes_begin_and_the_first_updates_make_a_model():
    story = begun()
    action = opens(story)
    assert action == OpenRound(round=1, nodes=FOUR, wanted=2, quorum=2, max_staleness=20)
    assert keys(planned(story)) == [f"r0001/{name}/a1" for name in FOUR]
    story.trained(1, "dave")
    story.trained(1, "bob")
    assert planned(story) == [Aggregate(round=1, contributors=("bob", "dave"))]


def test_those_that_are_not_done_go_on_with_the_model_that_they_have():
    story = after_one_round()
    assert opens(story).nodes == ("alice", "bob")
    assert planned(story) == [
        Perform(task=TaskKey(round=2, node="alice"), models={"base": blob("1")}),
        Perform(task=TaskKey(round=2, node="bob"), models={"base": blob("1")}),
        Perform(task=TaskKey(round=1, node="carol"), models={"base": blob("0")}),
        Perform(task=TaskKey(round=1, node="dave"), models={"base": blob("0")}),
    ]


def test_a_late_update_counts_and_its_node_waits_for_the_next_model():
    story = after_one_round()
    opens(story)
    story.trained(1, "carol")
    assert keys(planned(story)) == ["r0001/carol/e1", "r0002/alice/a1", "r0002/bob/a1", "r0001/dave/a1"]
    story.evaluated(1, "carol", 0.5)
    story.trained(2, "bob")
    assert planned(story) == [Aggregate(round=2, contributors=("bob", "carol"))]
    closes(story, 2, "bob", "carol")
    assert story.state.history[-1].staleness == {"bob": 0, "carol": 1}
    assert story.state.nodes["carol"].kept == TaskKey(round=1, node="carol")
    assert opens(story).nodes == ("bob", "carol")


def test_what_came_beyond_the_buffer_is_in_the_next_round_from_the_start():
    story = after_one_round()
    story.trained(1, "dave")
    assert list(story.state.carried) == ["dave"], "it came between two rounds"
    action = opens(story)
    assert action.nodes == ("alice", "bob")
    story.trained(2, "alice")
    story.trained(2, "bob")
    assert planned(story)[-1] == Aggregate(round=2, contributors=("alice", "dave")), "the first that came"
    story.aggregated(2, "alice", "dave")
    assert list(story.state.carried) == ["bob"]
    assert story.state.nodes["bob"].kept == TaskKey(round=1, node="bob"), "its newest is in no model yet"


def test_no_more_train_at_a_time_than_are_allowed():
    story = begun()
    first = opens(story, concurrency=2)
    assert len(first.nodes) == 2
    assert len(keys(planned(story, concurrency=2))) == 2
    story.trained(1, first.nodes[0])
    (widen,) = [one for one in planned(story, concurrency=2) if isinstance(one, WidenRound)]
    assert len(widen.nodes) == 1
    assert not set(widen.nodes) & set(first.nodes)
    story.tell(RoundWidened, round=1, nodes=widen.nodes)
    assert len(keys(planned(story, concurrency=2))) == 2


def test_nobody_is_asked_before_all_are_ready_or_lost_again():
    """After a resume, else, whoever is ready first would be."""
    story = begun()
    opens(story, concurrency=1)
    story.resumed()
    story.tell(RunStarted, **_started(story))
    story.ready("alice", "bob", "carol")
    assert not [one for one in planned(story, concurrency=3) if isinstance(one, WidenRound)]
    story.lost("dave")
    assert [one for one in planned(story, concurrency=3) if isinstance(one, WidenRound)]


def test_a_node_that_is_out_of_reach_holds_nobody_back_and_goes_on_when_it_is_back():
    story = after_one_round()
    story.lost("carol")
    assert len(opens(story, concurrency=2).nodes) == 1, "dave is at work, carol is not counted"
    story.ready("carol")
    assert "r0001/carol/a1" in keys(planned(story, concurrency=2))


# What is too late


def test_one_that_is_too_far_behind_is_stopped_and_asked_anew():
    story = begun()
    opens(story, *FOUR, max_staleness=1)
    for number in (1, 2):
        story.trained(number, "alice")
        story.trained(number, "bob")
        closes(story, number, "alice", "bob")
        if number == 1:
            assert "carol" in story.state.pending
            opens(story, max_staleness=1)
    assert "carol" not in story.state.pending
    stale = Cancel(task=TaskKey(round=1, node="carol"), reason="the round was closed without it")
    assert stale in planned(story, max_staleness=1)
    assert opens(story, max_staleness=1).nodes == FOUR
    story.trained(1, "carol")
    assert story.state.open.answers == {}
    story.failed(1, "dave", stale.reason, retryable=False)
    assert story.state.open.answers == {}
    assert story.state.nodes["dave"].strikes == 0


def test_an_update_that_waits_for_too_many_models_is_dropped():
    story = begun()
    opens(story, max_staleness=1, buffer=1)
    for name in FOUR:
        story.trained(1, name)
    for number, name in enumerate(("alice", "bob"), start=1):
        assert planned(story, max_staleness=1, buffer=1)[-1] == Aggregate(round=number, contributors=(name,))
        closes(story, number, name)
        if number == 1:
            assert opens(story, max_staleness=1, buffer=1).nodes == ("alice",)
    assert story.state.carried == {}
    assert opens(story, max_staleness=1, buffer=1).nodes == ("bob", "carol", "dave")


def test_a_deadline_counts_from_when_a_node_was_asked():
    story = after_one_round()
    asked = story.state.pending["carol"].asked_at
    story.now += timedelta(seconds=40)
    opens(story, deadline_s=60)
    now = asked + timedelta(seconds=60)
    late = [one for one in planned(story, deadline_s=60, now=now) if isinstance(one, Cancel)]
    assert [str(one.task) for one in late] == ["r0001/carol/a1", "r0001/dave/a1"]
    story.failed(1, "carol", late[0].reason, retryable=False)
    assert "r0001/carol/a1" not in keys(planned(story, deadline_s=60, now=now))
    story.trained(2, "alice")
    story.trained(2, "bob")
    closes(story, 2, "alice", "bob")
    assert story.state.history[-1].failed == ("carol",)
    assert story.state.nodes["carol"].strikes == 1


def test_the_time_without_a_coordinator_does_not_count():
    story = after_one_round()
    before = story.state.pending["carol"].asked_at
    story.resumed(after=900, absent_s=900.0)
    assert story.state.pending["carol"].asked_at == before + timedelta(seconds=900)


def test_before_its_deadline_a_node_is_told_to_hand_in_what_it_has():
    story = after_one_round()
    opens(story, deadline_s=100, partial=True)
    seconds = {
        str(one.task): one.seconds for one in planned(story, deadline_s=100, partial=True) if isinstance(one, Perform)
    }
    assert seconds["r0001/carol/a1"] < seconds["r0002/alice/a1"] == 90


def test_one_that_fails_is_asked_anew_with_the_newest_model():
    story = after_one_round()
    opens(story)
    story.failed(1, "carol")
    (widen,) = [one for one in planned(story) if isinstance(one, WidenRound)]
    assert widen.nodes == ("carol",)
    story.tell(RoundWidened, round=2, nodes=("carol",))
    again = Perform(task=TaskKey(round=2, node="carol", attempt=2), models={"base": blob("1")})
    assert again in planned(story)
    assert "r0002/carol/a2" not in keys(planned(story, attempts=1))


# The end


def test_where_nobody_is_left_to_fill_it_the_quorum_is_enough_or_the_run_gives_up():
    story = begun("alice", "bob", "carol")
    opens(story, buffer=3, quorum=2)
    story.trained(1, "alice")
    story.failed(1, "bob", "it diverged", retryable=False)
    story.lost("carol")
    assert planned(story, buffer=3, quorum=2) == [], "carol may come back"
    over = story.now + timedelta(minutes=5)
    reason = "round 1 has 1 of the 2 updates it needs (bob: it diverged; carol: no route to host)"
    assert planned(story, buffer=3, quorum=2, now=over)[-1] == GiveUp(reason=reason)
    story.ready("carol")
    story.trained(1, "carol")
    assert planned(story, buffer=3, quorum=2) == [Aggregate(round=1, contributors=("alice", "carol"))]


def test_no_round_opens_that_could_not_have_its_quorum():
    story = begun("alice", "bob", "carol")
    story.lost("bob", "permission denied", passing=False)
    story.tell(NodeDeclined, node="carol", reason="on battery", seconds=3600)
    assert planned(story, quorum=2) == [], "carol may say yes later"
    story.lost("carol", "permission denied", passing=False)
    reason = "round 1 needs 2 nodes, and 1 can be had (bob: permission denied; carol: permission denied)"
    assert planned(story, quorum=2) == [GiveUp(reason=reason)]
    assert keys(planned(story, quorum=1))[-1] == "open/1"


def test_a_round_waits_for_one_whose_owner_says_no_where_its_quorum_needs_it():
    story = begun("alice", "bob")
    opens(story)
    story.trained(1, "alice")
    story.tell(NodeDeclined, node="bob", reason="on battery", seconds=3600)
    assert planned(story, quorum=2) == []


def test_one_that_failed_again_and_again_rests_unless_the_quorum_needs_it():
    story = begun("alice", "bob", "carol")
    for number in (1, 2):
        opens(story, attempts=1)
        story.failed(number, "carol", retryable=False)
        story.trained(number, "alice")
        story.trained(number, "bob")
        closes(story, number, "alice", "bob")
    assert story.state.nodes["carol"].strikes == 2
    assert opens(story, attempts=1).nodes == ("alice", "bob")
    story.failed(3, "alice", retryable=False)
    assert [one.nodes for one in planned(story, attempts=1) if isinstance(one, WidenRound)] == [("carol",)]


def test_the_last_model_is_made_with_nobody_left_at_work_and_all_score_it():
    story = begun(rounds=1)
    opens(story, *FOUR)
    story.trained(1, "alice")
    story.trained(1, "bob")
    story.trained(1, "dave")
    story.aggregated(1, "alice", "bob")
    assert story.state.pending == story.state.carried == {}
    assert keys(planned(story)) == ["cancel/r0001/carol/a1", *(f"r0001/{name}/e1" for name in FOUR)]


def test_a_model_between_is_scored_by_those_that_are_free():
    story = after_one_round()
    opens(story)
    story.trained(2, "alice")
    story.trained(2, "bob")
    story.aggregated(2, "alice", "bob")
    story.started(2, "alice", kind="evaluate")
    assert [key for key in keys(planned(story)) if "/e" in key] == ["r0002/alice/e1", "r0002/bob/e1"]
    story.tell(RoundOpened, round=3, nodes=("bob",), wanted=1, quorum=1, max_staleness=20)
    story.trained(3, "bob")
    story.aggregated(3, "bob")
    assert [key for key in keys(planned(story)) if "/e" in key] == ["r0003/bob/e1"], "alice still scores the last one"


def test_a_held_round_waits_with_its_first_updates():
    story = begun()
    opens(story, hold=True)
    story.trained(1, "alice")
    story.trained(1, "bob")
    assert keys(planned(story, hold=True)) == ["hold/1"]


def test_a_synchronous_round_takes_no_late_update():
    story = begun()
    story.opened(1, wanted=2, quorum=2)
    story.trained(1, "alice")
    story.trained(1, "bob")
    story.aggregated(1, "alice", "bob")
    story.trained(1, "carol")
    assert story.state.pending == story.state.carried == {}
    assert story.state.history[0].staleness == {}


# The journal


def test_repeated_events_change_nothing():
    """Every event of a run twice in a row gives the same state."""
    story = after_one_round()
    opens(story, "alice")
    story.started(1, "dave")
    story.trained(1, "carol")
    story.failed(1, "dave")
    twice = Story(*FOUR, rounds=9)
    twice.events, twice.state = [], type(twice.state)()
    for event in story.events:
        twice.now = event.at
        for _ in range(2):
            twice.tell(type(event), after=0, **{f: getattr(event, f) for f in event.__slots__ if f != "at"})
    assert twice.state == story.state


@pytest.mark.parametrize("is_open", [False, True])
def test_a_late_update_that_the_disk_has_lost_is_asked_for_again(is_open):
    story = after_one_round()
    if is_open:
        opens(story)
    story.trained(1, "carol")
    story.tell(UpdateLost, task=TaskKey(round=1, node="carol"), reason="gone")
    assert story.state.carried == {}
    assert story.state.nodes["carol"].contributions == 0
    if not is_open:
        opens(story)
    assert "r0001/carol/a1" in keys(planned(story))
    story.trained(1, "carol")
    assert isinstance(story.state.open.answers["carol"], Received)


def test_models_that_trainings_go_on_with_stay_on_the_nodes():
    story = after_one_round()
    for number in (2, 3, 4):
        opens(story)
        story.trained(number, "alice")
        story.trained(number, "bob")
        closes(story, number, "alice", "bob")
    assert {digest[0] for digest in tidying.models(story.state, 20)} == {"1", "2", "3"}, "carol trains the first model"
    opens(story)
    story.trained(1, "carol")
    story.trained(1, "dave")
    story.trained(5, "alice")
    came = [TaskKey(round=1, node="carol"), TaskKey(round=5, node="alice")]
    story.aggregated(5, "carol", "dave")
    assert tidying.updates(story.state, came) == came[:1], "alice's waits for the next model"


# What is shown


def test_nobody_is_a_straggler_and_no_waiting_is_booked():
    story = after_one_round()
    opens(story)
    story.trained(2, "alice")
    late = story.now + timedelta(hours=1)
    assert stragglers(story.state, late, {}) == ()
    story.trained(1, "carol")
    story.aggregated(2, "alice", "carol")
    assert waiting(story.state) == ()


def test_a_pending_node_is_shown_at_work_and_history_tells_how_late_updates_were():
    story = after_one_round()
    opens(story)
    told = report(story.state, alive=True, now=story.now)
    assert {node.name: (node.state, node.round) for node in told.nodes}["carol"] == ("training", 1)
    story.trained(1, "carol")
    story.trained(2, "alice")
    story.aggregated(2, "alice", "carol")
    history = report(story.state, alive=True, now=story.now).to_json()["history"]
    assert [row["staleness"] for row in history][1:] == [{"alice": 0, "bob": 0}, {"alice": 0, "carol": 1}]


def test_a_node_that_goes_on_with_an_earlier_model_says_which():
    story = after_one_round()
    opens(story)
    rows = {words[1]: words[2:4] for line in drawn(story, 100).splitlines() if len(words := line.split()) > 3}
    assert rows["carol"] == ["training", "r1"]
    assert rows["alice"][0] == "waiting"


def test_events_tell_how_late_updates_are():
    story = after_one_round()
    opens(story)
    assert sentence(story.events[-1], story.state) == "round 2 opened with 2 nodes, and 2 nodes at work"
    story.trained(1, "carol")
    assert "round 1: carol sent its update" in (told := sentence(story.events[-1], story.state))
    assert told.endswith(", 1 model late)")
    story.trained(2, "alice")
    assert "late" not in sentence(story.events[-1], story.state)
    story.aggregated(2, "alice", "carol")
    assert sentence(story.events[-1], story.state).endswith(", the latest 1 model late")


def test_a_node_that_is_away_is_waited_for_only_where_no_other_is_at_work():
    story = after_one_round()
    opens(story, "alice", "bob")
    story.lost("carol")
    assert "waits for" not in drawn(story, 100)
    story.lost("dave")
    for name in ("alice", "bob"):
        story.failed(2, name, "it diverged", retryable=False)
    assert "round 2 waits for carol, dave" in drawn(story, 100)


# What a late update counts


@pytest.mark.parametrize(
    ("named", "shares"),
    [
        (Named(name="constant"), [1, 1, 1, 1]),
        (Named(name="polynomial"), [1, 2**-0.5, 6**-0.5, 10**-0.5]),
        (Named(name="polynomial", options={"exponent": 2}), [1, 1 / 4, 1 / 36, 1 / 100]),
        (Named(name="hinge"), [1, 1, 1 / 11, 1 / 51]),
        (Named(name="hinge", options={"a": 1, "b": 0}), [1, 1 / 2, 1 / 6, 1 / 10]),
    ],
)
def test_the_functions_of_staleness(named, shares):
    assert [staleness.build(named).share(late) for late in (0, 1, 5, 9)] == pytest.approx(shares)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (Named(name="linear"), "there is none called 'linear'"),
        (Named(name="polynomial", options={"exponent": -1.0}), "exponent: should be at least 0, not -1.0"),
        (Named(name="hinge", options={"a": 0.0}), "a: should be above 0, not 0.0"),
        (Named(name="constant", options={"a": 1}), "a: unknown option"),
    ],
)
def test_a_function_that_is_none_is_refused(named, message):
    with pytest.raises(ConfigError, match="schedule/staleness") as caught:
        staleness.build(named)
    assert message in caught.value.message


@pytest.fixture
def files(tmp_path):
    """The first model, the newest, and two updates: of the newest and of the first."""
    generator = torch.Generator().manual_seed(0)
    paths = {}
    for name in ("first", "newest", "alice", "bob"):
        values = {"w": torch.randn(7, 3, generator=generator), "n": torch.tensor([len(name)])}
        paths[name] = tmp_path / f"{name}.safetensors"
        save(paths[name], values)
    return paths


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam", "median", "norm-clip", "geometric-median"])
def test_a_late_update_is_one_of_the_newest_model_that_went_a_share_of_its_way(files, tmp_path, strategy):
    first, newest, bob = (Weights.open(files[name])["w"].double() for name in ("first", "newest", "bob"))
    moved = tmp_path / "moved.safetensors"
    save(moved, {"w": (newest + 0.5 * (bob - first)).float(), "n": Weights.open(files["bob"])["n"]})

    def made(path, late):
        out = tmp_path / "out.safetensors"
        aggregate_round(
            model=files["newest"],
            updates={"alice": (files["alice"], 3), "bob": (path, 5)},
            memory=None,
            strategy=build(Named(name=strategy)),
            model_out=out,
            memory_out=None,
            late=late,
        )
        return Weights.open(out)["w"].clone()

    assert torch.allclose(made(files["bob"], {"bob": Late(base=files["first"], share=0.5)}), made(moved, None))


def test_a_what_if_counts_late_updates_as_the_round_did(files, tmp_path):
    late, out = Late(base=files["first"], share=0.25), tmp_path / "round.safetensors"
    closed = aggregate_round(
        model=files["newest"],
        updates={"alice": (files["alice"], 3), "bob": (files["bob"], 5)},
        memory=None,
        strategy=build(Named(name="fedavg")),
        model_out=out,
        memory_out=None,
        late={"bob": late},
    )
    tried = aggregate_files(
        [files["alice"], files["bob"]],
        output=tmp_path / "what-if.safetensors",
        strategy=Named(name="fedavg"),
        weights=[3, 5],
        model=files["newest"],
        late=[None, late],
    )
    assert tried.blob == closed.model


def _started(story: Story) -> dict:
    first = story.events[0]
    return {name: getattr(first, name) for name in first.__slots__ if name != "at"}


def test_a_failure_of_a_pending_training_between_two_rounds_frees_its_node():
    story = after_one_round()
    story.failed(1, "carol")
    assert "carol" not in story.state.pending
    assert opens(story).nodes == ("alice", "bob", "carol")


def test_what_a_node_answers_after_a_round_went_past_it_is_no_news():
    story = begun(rounds=1)
    opens(story, *FOUR)
    story.trained(1, "alice")
    story.trained(1, "bob")
    story.aggregated(1, "alice", "bob")
    story.trained(1, "carol")
    assert story.state.nodes["carol"].task is None
    assert story.state.nodes["carol"].contributions == 0
    assert story.state.carried == {}
