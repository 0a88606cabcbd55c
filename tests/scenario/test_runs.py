"""Whole runs by the real coordinator: what goes wrong on nodes, deadlines, holds, and the comparison at the end."""

from dataclasses import replace

import pytest

from fedctl import staleness
from fedctl.codecs.pipeline import PLAIN
from fedctl.coordinator import raise_if_failed
from fedctl.durable import digest
from fedctl.errors import ConfigError, RunError, StateError
from fedctl.events import (
    ModelEvaluated,
    ModelInitialized,
    NodeLost,
    RoundAggregated,
    RoundHeld,
    RoundOpened,
    RunFailed,
    RunFinished,
    RunStarted,
    TaskFailed,
    TaskStarted,
    UpdateReceived,
)
from fedctl.federation import Named
from fedctl.journal import Journal
from fedctl.records import Result, TaskKey
from fedctl.rounds import close_round
from fedctl.strategies import build
from fedctl.weights import Weights, read_file
from tests.scenario.world import Killed, Scene, Watch, Work, federation, of_kind

HOUR = 3600.0
three = ("alice", "bob", "carol")


def kinds(events):
    return [type(event) for event in events]


def test_a_calm_run(tmp_path):
    scene, watch = Scene(tmp_path, federation(*three, rounds=3)), Watch()
    state = scene.go(watch)
    assert (state.status, state.round) == ("finished", 3)
    assert state == scene.state, "the live state is what the journal tells"
    assert watch.events == scene.events
    assert watch.state == state
    assert kinds(scene.events)[0] is RunStarted
    assert kinds(scene.events)[-1] is RunFinished
    assert [len(of_kind(scene.events, kind)) for kind in (ModelInitialized, RoundOpened, RoundAggregated)] == [1, 3, 3]
    assert len(of_kind(scene.events, UpdateReceived)) == 9
    assert all(state.evaluations[3][name] for name in three)
    assert [report.contributors for report in state.history] == [three] * 3
    assert all(node.task is None and node.contributions == 3 for node in state.nodes.values())


def test_the_published_model_is_the_last_rounds(tmp_path):
    scene = Scene(tmp_path, federation(*three))
    state = scene.go()
    assert digest(scene.run.model) == digest(scene.run.round_model(2)) == state.model
    checkpoint, model = read_file(scene.run.checkpoint), Weights.open(scene.run.model)
    assert all(checkpoint[name].equal(model[name]) for name in model)


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "median"])
def test_the_order_of_answers_changes_no_bit(strategy, tmp_path):
    models = set()
    for jitter in range(4):
        scene = Scene(tmp_path / f"{jitter}", federation(*three, strategy=strategy), jitter=jitter)
        models.add(scene.go().model)
    assert len(models) == 1


def test_every_event_is_written_before_anyone_is_told(tmp_path):
    scene, written = Scene(tmp_path, federation("alice", rounds=1)), []
    scene.go(Watch(lambda event: written.append(event in scene.events)))
    assert all(written)


def test_a_failure_that_may_pass_is_tried_again(tmp_path):
    scene = Scene(tmp_path, federation(*three, quorum=1.0))
    scene.world.fail_at("bob", 1, 1, "CUDA out of memory")
    state = scene.go()
    assert state.history[0].contributors == three
    (failed,) = of_kind(scene.events, TaskFailed)
    assert (failed.task, failed.reason, failed.retryable) == (
        TaskKey(round=1, node="bob"),
        "CUDA out of memory",
        True,
    )
    assert TaskKey(round=1, node="bob", attempt=2) in scene.world.done


def test_a_failure_that_will_not_pass_is_not_tried_again(tmp_path):
    scene = Scene(tmp_path, federation(*three, quorum=2))
    scene.world.fail_at("bob", 1, 1, "KeyError: 'label'", retryable=False)
    state = scene.go()
    assert [report.contributors for report in state.history] == [("alice", "carol"), three]
    assert state.history[0].failed == ("bob",)
    assert TaskKey(round=1, node="bob", attempt=2) not in scene.world.done


def test_a_node_that_always_fails_does_not_stop_the_others(tmp_path):
    scene = Scene(tmp_path, federation(*three, rounds=3, quorum=0.6, attempts=2))
    scene.world.always_failing.add("bob")
    state = scene.go()
    assert state.status == "finished"
    assert [report.contributors for report in state.history] == [("alice", "carol")] * 3
    assert [key.round for key in scene.world.keys("train") if key.node == "bob"] == [1, 1, 2, 2], "then it rests"
    assert state.nodes["bob"].error == "the disk is full"


def test_a_node_that_cannot_be_reached_is_left_out(tmp_path):
    scene = Scene(tmp_path, federation(*three, quorum=2))
    scene.world.down.add("carol")
    state = scene.go()
    assert state.status == "finished"
    assert {event.reason for event in of_kind(scene.events, NodeLost)} == {"no route to host"}
    assert [event.nodes for event in of_kind(scene.events, RoundOpened)] == [("alice", "bob")] * 2


def test_a_quorum_that_cannot_be_met_ends_the_run_and_a_resume_tries_again(tmp_path):
    scene = Scene(tmp_path, federation(*three, quorum=3, attempts=2))
    scene.world.always_failing.add("bob")
    state = scene.go()
    assert state.status == "failed"
    assert state.reason == "round 1 has 2 of the 3 updates it needs (bob: the disk is full)"
    assert kinds(scene.events)[-1] is RunFailed
    with pytest.raises(RunError, match="2 of the 3") as error:
        raise_if_failed(state)
    assert error.value.hint.startswith("`fedctl launch --resume toy` tries again with the same code")

    assert scene.go().status == "failed", "a fresh budget, and bob fails again"
    assert [key.attempt for key in scene.world.keys("train") if key.node == "bob"] == [1, 2, 3, 4]

    scene.world.always_failing.clear()
    state = scene.go()
    assert state.status == "finished"
    assert [report.contributors for report in state.history] == [three] * 2
    assert [key.attempt for key in scene.world.keys("train") if key.node == "alice"] == [1, 1], "kept, not done again"


def test_no_node_at_all_ends_the_run_and_a_resume_finds_them(tmp_path):
    scene = Scene(tmp_path, federation("alice", "bob"))
    scene.world.down |= {"alice", "bob"}
    state = scene.go()
    assert state.status == "failed"
    assert state.reason == "round 1 needs 2 nodes, and 0 can be had (alice: no route to host; bob: no route to host)"
    scene.world.down.clear()
    assert scene.go().status == "finished"


def test_an_update_with_a_nan_is_refused_by_name_and_the_round_goes_on(tmp_path):
    scene = Scene(tmp_path, federation(*three, quorum=2))
    scene.world.broken.add(("bob", 1))
    state = scene.go()
    (failed,) = of_kind(scene.events, TaskFailed)
    assert failed.reason == "its update: tensor `w` has NaN or infinite values"
    assert failed.retryable is False
    assert not scene.run.update(1, "bob").exists(), "a what-if must not find it"
    assert [report.contributors for report in state.history] == [("alice", "carol"), three]


def test_a_node_is_told_that_its_update_arrived_and_not_before(tmp_path):
    scene = Scene(tmp_path, federation(*three))
    scene.go()
    kept = {key: scene.world.works[key].update for key in scene.world.keys("train")}
    assert kept == dict.fromkeys(kept)


def test_code_that_cannot_be_used_is_an_error_of_the_configuration(tmp_path):
    scene = Scene(tmp_path, federation("alice"))
    key = TaskKey(round=0, node="coordinator", kind="initialize")
    reason = "task.model_args: unexpected keyword argument 'lrr'"
    scene.world.works[key] = Work(Result(key=key, error=reason, retryable=False), scene.world.now)
    with pytest.raises(ConfigError, match="lrr") as error:
        scene.go()
    assert "task: {model_args" in error.value.hint


def test_a_first_model_that_fails_to_come_is_tried_again(tmp_path):
    scene = Scene(tmp_path, federation("alice"))
    key = TaskKey(round=0, node="coordinator", kind="initialize")
    scene.world.works[key] = Work(Result(key=key, error="killed", retryable=True), scene.world.now)
    assert scene.go().status == "finished"
    assert [k.attempt for k in scene.world.keys("initialize")] == [2]


def two_are_in(scene, then):
    """Does `then` once alice and bob have answered in round 1 and carol is at work."""
    wanted = {(UpdateReceived, "alice"), (UpdateReceived, "bob"), (TaskStarted, "carol")}

    def at(event):
        if isinstance(event, UpdateReceived | TaskStarted) and event.task == TaskKey(round=1, node=event.task.node):
            wanted.discard((type(event), event.task.node))
            if not wanted and scene.world.slow:
                scene.world.slow.clear()
                then()

    return Watch(at)


def late_after_two(scene):
    return two_are_in(scene, lambda: scene.world.pass_time(HOUR))


def test_past_the_deadline_a_slow_node_is_cancelled_and_the_round_closes(tmp_path):
    scene = Scene(tmp_path, federation(*three, quorum=2, deadline_s=600.0))
    scene.world.slow["carol"] = 24 * HOUR
    state = scene.go(late_after_two(scene))
    assert state.status == "finished"
    assert [report.contributors for report in state.history] == [("alice", "bob"), three]
    reasons = {event.reason for event in of_kind(scene.events, TaskFailed)}
    assert "the deadline of 600 s passed" in reasons
    assert TaskKey(round=1, node="carol", attempt=2) not in scene.world.done


def test_past_the_deadline_without_a_quorum_the_run_fails_and_says_who(tmp_path):
    scene = Scene(tmp_path, federation(*three, rounds=1, quorum=3, deadline_s=600.0))
    scene.world.slow["carol"] = 24 * HOUR
    state = scene.go(late_after_two(scene))
    assert state.status == "failed"
    assert state.reason.endswith("(carol: the deadline of 600 s passed)")
    assert scene.go().status == "finished"


def test_what_a_node_finished_while_no_coordinator_was_there_is_taken(tmp_path):
    """The night between the death and the resume is not the node's delay."""
    scene = Scene(tmp_path, federation(*three, rounds=1, quorum=3, deadline_s=600.0))
    scene.world.slow["carol"] = HOUR

    def die():
        raise Killed

    assert scene.dies(two_are_in(scene, die))
    scene.world.pass_time(12 * HOUR)
    state = scene.go()
    assert state.history[0].contributors == three
    assert of_kind(scene.events, TaskFailed) == []
    assert len(state.evaluations[1]) == 3


def test_a_held_run_waits_for_a_hand_and_goes_on(tmp_path):
    calm = Scene(tmp_path / "calm", federation(*three, strategy="fedavgm")).go()
    scene = Scene(tmp_path / "held", federation(*three, strategy="fedavgm"))
    for number in (1, 2):
        state = scene.go(hold=True)
        assert state.status == "held"
        assert state.open.number == number
        assert kinds(scene.events)[-1] is RoundHeld
        scene.world.pass_time(9 * HOUR)
        committed = close_by_hand(scene, Named(name="fedavgm"))
        assert committed.round == number
        assert scene.state.status == "running", "nothing is held any more"
    state = scene.go(hold=True)
    assert state.status == "finished"
    assert state.model == calm.model
    assert len(scene.world.keys("train")) == 6


def test_a_held_round_may_be_closed_by_another_strategy(tmp_path):
    scene = Scene(tmp_path, federation(*three, rounds=1))
    scene.go(hold=True)
    median = close_by_hand(scene, Named(name="median"))
    state = scene.go(hold=True)
    assert (state.status, state.model) == ("finished", median.model)
    assert scene.run.memory(1).exists() is False


def test_a_held_run_that_is_resumed_without_hold_closes_its_round_itself(tmp_path):
    scene = Scene(tmp_path, federation(*three))
    scene.go(hold=True)
    assert scene.go().status == "finished"
    assert len(of_kind(scene.events, RoundHeld)) == 1


def close_by_hand(scene, named):
    with scene.run.lock(), Journal(scene.run.journal) as journal:
        state = scene.state
        event = close_round(
            scene.run,
            state,
            contributors=tuple(state.open.updates),
            strategy=build(named),
            staleness=staleness.build(scene.federation.schedule.staleness),
            federation=scene.federation,
            down=PLAIN,
            at=scene.world.clock,
        )
        journal.append([event])
    return event


def test_a_comparison_trains_each_node_alone_and_scores_every_model_everywhere(tmp_path):
    scene = Scene(tmp_path, federation(*three, compare=True, cohort=2, rounds=4))
    state = scene.go()
    assert state.status == "finished"
    trained = {name for report in state.history for name in report.contributors}
    assert set(state.alone) == trained
    labels = {"global", *(f"alone/{name}" for name in trained)}
    assert {name: set(scored.scores) for name, scored in state.compared.items()} == dict.fromkeys(three, labels)
    events = kinds(scene.events)
    alone = [i for i, e in enumerate(scene.events) if isinstance(e, TaskStarted) and e.task.kind == "alone"]
    compared = [i for i, e in enumerate(scene.events) if isinstance(e, ModelEvaluated) and e.task.kind == "compare"]
    last_round = max(i for i, kind in enumerate(events) if kind is RoundAggregated)
    assert last_round < min(alone)
    assert max(alone) < min(compared)


def test_a_comparison_goes_on_without_a_node_that_fails_in_it(tmp_path):
    scene = Scene(tmp_path, federation(*three, compare=True, rounds=1))
    scene.world.fail_at("bob", 0, 1, "no", retryable=False)
    key = TaskKey(round=0, node="bob", kind="alone")
    scene.world.works[key] = Work(Result(key=key, error="diverged", retryable=False), scene.world.now)
    state = scene.go()
    assert state.status == "finished"
    assert all(set(s.scores) == {"global", "alone/alice", "alone/carol"} for s in state.compared.values())


def test_two_coordinators_never_work_on_one_run(tmp_path):
    scene = Scene(tmp_path, federation("alice"))
    with scene.run.lock(), pytest.raises(StateError, match="is held by process"):
        scene.go()
    assert scene.events == []


def test_a_cohort_is_drawn_anew_each_round_and_again_the_same(tmp_path):
    names = [f"n{i}" for i in range(8)]
    drawn = []
    for again in ("a", "b"):
        scene = Scene(tmp_path / again, federation(*names, cohort=3, rounds=6), jitter=ord(again))
        scene.go()
        drawn.append([event.nodes for event in of_kind(scene.events, RoundOpened)])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 1
    assert all(len(nodes) == 3 for nodes in drawn[0])


def test_a_hundred_nodes(tmp_path):
    scene = Scene(tmp_path, federation(*(f"n{i:03}" for i in range(100)), rounds=2))
    assert scene.go().status == "finished"
    assert len(scene.world.keys("train")) == 200


def test_a_longer_run_of_the_same_federation_goes_on_from_its_end(tmp_path):
    """A finished run is over; `launch --resume` refuses it, and the coordinator itself would only add rounds."""
    scene = Scene(tmp_path, federation("alice", "bob", rounds=1))
    scene.go()
    longer = replace(scene.federation, rounds=3)
    assert scene.go(federation=longer).round == 3
    straight = Scene(tmp_path / "straight", longer)
    assert straight.go().model == scene.state.model
