"""Every line of the schedule's policy, in whole runs on a clock of their own: who is asked, awaited and left behind."""

from collections import Counter
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl.events import (
    NodeDeclined,
    NodeLost,
    NodeReady,
    RoundAggregated,
    RoundOpened,
    RoundWidened,
    RunFinished,
    TaskFailed,
    TaskStarted,
    UpdateReceived,
)
from fedctl.records import TaskKey
from tests.scenario.world import Killed, Scene, Watch, dying, federation, of_kind

three = ("alice", "bob", "carol")
ten = tuple(f"n{i}" for i in range(10))


def contributors(scene: Scene) -> list[tuple[str, ...]]:
    return [report.contributors for report in scene.state.history]


def when(scene: Scene, test, do) -> Watch:
    """A sink that does something at the first event that passes a test."""
    waiting = [do]

    def look(event):
        if waiting and test(event):
            waiting.pop()()

    return Watch(look)


def started(node: str, round: int):
    return lambda event: (
        isinstance(event, TaskStarted)
        and (event.task.node, event.task.round, event.task.kind)
        == (
            node,
            round,
            "train",
        )
    )


def goes_down(scene: Scene, node: str):
    """Take a node away now."""

    def leave():
        with scene.world.changed:
            scene.world.down.add(node)
            scene.world.changed.notify_all()

    return leave


# A node that goes away


def test_one_that_comes_back_in_time_is_in_the_round_and_has_trained_once(tmp_path):
    calm = Scene(tmp_path / "calm", federation(*three))
    scene = Scene(tmp_path / "hit", federation(*three), look_s=0.5)
    scene.world.slow["bob"] = 20
    back = Watch(lambda event: isinstance(event, NodeLost) and scene.world.down.discard("bob"))
    away = when(scene, started("bob", 1), goes_down(scene, "bob"))
    state = scene.go(away, back)
    assert state.model == calm.go().model
    assert max(Counter(scene.world.done).values()) == 1
    assert [event.node for event in of_kind(scene.events, NodeLost)] == ["bob"]
    assert TaskFailed not in {type(event) for event in scene.events}, "no attempt is spent"


def test_one_that_does_not_come_back_is_given_up_on_when_patience_ends(tmp_path):
    scene = Scene(tmp_path, federation(*three, quorum=2, patience_s=300.0), look_s=2.0)
    scene.world.slow["bob"] = 20
    state = scene.go(when(scene, started("bob", 1), goes_down(scene, "bob")))
    assert state.status == "finished"
    assert contributors(scene)[0] == ("alice", "carol")
    gone = of_kind(scene.events, NodeLost)[0].at
    closed = of_kind(scene.events, RoundAggregated)[0].at
    assert timedelta(seconds=290) < closed - gone < timedelta(seconds=400)
    looked = len([event for event in of_kind(scene.events, NodeLost) if event.at < closed])
    assert 3 < looked < 20, "it is looked for ever more rarely"


def test_a_round_that_loses_its_quorum_waits_and_then_ends_the_run_to_be_resumed(tmp_path):
    scene = Scene(tmp_path, federation(*three, quorum=3), look_s=2.0)
    scene.world.slow["bob"] = 20
    state = scene.go(when(scene, started("bob", 1), goes_down(scene, "bob")))
    assert state.status == "failed"
    assert state.reason == "round 1 has 2 of the 3 updates it needs (bob: no route to host)"
    assert (scene.events[-1].at - of_kind(scene.events, NodeLost)[0].at).total_seconds() > 290
    scene.world.down.clear()
    assert scene.go().status == "finished"
    assert contributors(scene) == [three, three]
    assert max(Counter(scene.world.done).values()) == 1, "bob's work of the first time was taken"


def test_one_whose_way_is_barred_is_not_waited_for(tmp_path):
    scene = Scene(tmp_path, federation(*three, quorum=2))
    state = scene.go(when(scene, lambda event: isinstance(event, RoundOpened), lambda: scene.world.barred.add("bob")))
    assert state.status == "finished"
    assert contributors(scene) == [("alice", "carol")] * 2
    assert not of_kind(scene.events, NodeLost)[0].passing


def test_one_that_was_not_there_at_first_joins_a_later_round(tmp_path):
    scene = Scene(tmp_path, federation(*three, quorum=2, rounds=4), look_s=0.5)
    scene.world.down.add("bob")
    came = when(scene, lambda event: isinstance(event, RoundAggregated), scene.world.down.clear)
    assert scene.go(came).status == "finished"
    assert contributors(scene)[0] == ("alice", "carol")
    assert contributors(scene)[-1] == three
    assert [event.node for event in of_kind(scene.events, NodeReady)].count("bob") == 1


# Cohorts


def test_of_those_that_were_asked_the_first_are_taken_and_the_others_stopped(tmp_path):
    scene = Scene(tmp_path, federation(*ten, cohort=5, overprovision=1.4, rounds=1))
    opened = {}

    def slow_down(event):
        if isinstance(event, RoundOpened) and not opened:
            opened["nodes"] = event.nodes
            scene.world.slow.update(dict.fromkeys(event.nodes[:2], 1e6))

    state = scene.go(Watch(slow_down))
    assert state.status == "finished"
    assert len(opened["nodes"]) == 7
    assert contributors(scene) == [opened["nodes"][2:]]
    assert state.history[0].failed == ()
    stopped = {event.task.node for event in of_kind(scene.events, TaskFailed)}
    assert stopped <= set(opened["nodes"][:2])


def test_one_whose_model_was_still_on_its_way_when_the_round_closed_is_stopped(tmp_path):
    scene = Scene(tmp_path, federation(*three, cohort=2, overprovision=1.5, rounds=3), look_s=0.05)
    scene.world.far["carol"] = 5
    scene.world.slow["carol"] = 1e6
    assert scene.go().status == "finished"
    assert contributors(scene)[0] == ("alice", "bob")
    assert scene.world.works[TaskKey.parse("r0001/carol/a1")].result.error == "it was cancelled"


def test_what_was_trained_for_a_closed_round_is_stopped_also_by_the_next_coordinator(tmp_path):
    scene = Scene(tmp_path, federation(*three, cohort=2, overprovision=1.5, rounds=2), look_s=0.05)
    scene.world.slow["carol"] = 1e6
    scene.world.far.update(alice=1, bob=1)

    def die(event):
        if isinstance(event, RoundAggregated):
            raise Killed

    assert scene.dies(Watch(die))
    assert scene.go().status == "finished"
    assert scene.world.works[TaskKey.parse("r0001/carol/a1")].result.error == "it was cancelled"


def test_what_cannot_be_stopped_because_its_node_is_out_of_reach_is_stopped_when_it_is_back(tmp_path):
    scene = Scene(tmp_path, federation(*three, cohort=2, overprovision=1.5, rounds=3), look_s=0.05)
    scene.world.slow.update(alice=5, bob=5, carol=1e6)
    leaves = when(scene, lambda event: isinstance(event, RoundAggregated), goes_down(scene, "carol"))
    back = Watch(lambda event: isinstance(event, NodeLost) and scene.world.down.discard("carol"))
    assert scene.go(leaves, back).status == "finished"
    assert scene.world.works[TaskKey.parse("r0001/carol/a1")].result.error == "it was cancelled"


def test_a_cohort_that_fails_is_replaced_by_others(tmp_path):
    scene = Scene(tmp_path, federation(*ten, cohort=3, quorum=3, rounds=1, attempts=1))

    def spoil(event):
        if isinstance(event, RoundOpened):
            for name in event.nodes[:2]:
                scene.world.fail_at(name, 1, 1)

    assert scene.go(Watch(spoil)).status == "finished"
    (widened,) = of_kind(scene.events, RoundWidened)
    (opened,) = of_kind(scene.events, RoundOpened)
    assert contributors(scene) == [tuple(sorted({opened.nodes[2], *widened.nodes}))]


def test_one_that_fails_round_after_round_is_asked_ever_more_rarely(tmp_path):
    scene = Scene(tmp_path, federation(*ten, rounds=17, attempts=1))
    scene.world.always_failing.add("n3")
    assert scene.go().status == "finished"
    assert [key.round for key in scene.world.keys("train") if key.node == "n3"] == [1, 2, 4, 8, 16]


# Owners' words


def test_a_run_waits_for_the_night_where_all_nodes_train_at_night(tmp_path):
    scene = Scene(tmp_path, federation(*three, rounds=1), look_s=60.0)
    scene.world.declining.update(dict.fromkeys(three, 3600.0))

    def night_falls(event):
        if isinstance(event, NodeDeclined) and len(of_kind(scene.events, NodeDeclined)) > 8:
            scene.world.declining.clear()

    state = scene.go(Watch(night_falls))
    assert state.status == "finished"
    assert contributors(scene) == [three]
    first, last = (of_kind(scene.events, kind)[0].at for kind in (NodeDeclined, RunFinished))
    assert last - first > timedelta(hours=1)


def test_a_run_goes_on_without_those_that_do_not_want_to_where_the_others_are_enough(tmp_path):
    scene = Scene(tmp_path, federation(*three, quorum=2))
    scene.world.declining["bob"] = 3600.0
    assert scene.go().status == "finished"
    assert contributors(scene) == [("alice", "carol")] * 2


# Any schedule, any crash


@st.composite
def schedules(draw):
    deadline_s = draw(st.sampled_from([None, 60.0]))
    return {
        "cohort": draw(st.sampled_from([1.0, 0.5, 2, 3])),
        "quorum": draw(st.sampled_from([0.5, 0.8, 1, 2])),
        "overprovision": draw(st.sampled_from([1.0, 1.5])),
        "attempts": draw(st.integers(1, 3)),
        "deadline_s": deadline_s,
        "patience_s": draw(st.sampled_from([5.0, 60.0])),
    }


@given(
    schedule=schedules(),
    seed=st.integers(0, 2**16),
    deaths=st.lists(st.tuples(st.integers(1, 30), st.floats(0, 1)), max_size=3),
    troubles=st.lists(
        st.tuples(st.sampled_from(["down", "barred", "declining", "failing"]), st.integers(0, 4), st.integers(1, 40)),
        max_size=4,
    ),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_whatever_befalls_a_run_it_ends_honestly(schedule, seed, deaths, troubles):
    """It comes to an end, no key is trained twice, and who is said to have contributed has."""
    names = ("alice", "bob", "carol", "dave", "erin")
    with TemporaryDirectory() as folder:
        scene = Scene(Path(folder) / "run", federation(*names, rounds=3, **schedule), jitter=seed, look_s=0.5)
        scene.world.slow.update({name: float((seed >> place) % 7) for place, name in enumerate(names)})
        seen = []

        def befall(event):
            seen.append(event)
            for what, node, at in troubles:
                if len(seen) == at:
                    _befall(scene, what, names[node])
                elif len(seen) == at + 25:
                    _pass(scene, names[node])

        state = None
        for nth, torn in [*deaths, (10**6, 0.0), (10**6, 0.0), (10**6, 0.0)]:
            if not scene.dies(Watch(befall), writer=dying(nth, torn)):
                state = scene.state
                if state.status == "finished":
                    break
        assert state is not None
        assert state.is_over
        assert max(Counter(scene.world.done).values()) == 1
        accepted = {(event.task.round, event.task.node) for event in of_kind(scene.events, UpdateReceived)}
        for report in state.history:
            assert {(report.number, name) for name in report.contributors} <= accepted
            assert len(report.contributors) >= 1
        assert scene.leftovers() == []


def _befall(scene: Scene, what: str, node: str) -> None:
    world = scene.world
    with world.changed:
        match what:
            case "down":
                world.down.add(node)
            case "barred":
                world.barred.add(node)
            case "declining":
                world.declining[node] = 30.0
            case _:
                world.always_failing.add(node)
        world.changed.notify_all()


def _pass(scene: Scene, node: str) -> None:
    world = scene.world
    world.down.discard(node)
    world.barred.discard(node)
    world.declining.pop(node, None)
    world.always_failing.discard(node)
