"""Whole runs whose rounds close with the first updates: who goes on, what is late, and that nothing of it is guessed.

`replayed` makes every round of a run anew from its journal and its files alone, as a person would with `aggregate`.
"""

from collections import Counter
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl import durable, rounds, staleness
from fedctl.aggregation import aggregate_round
from fedctl.events import NodeLost, RoundAggregated, RoundOpened, RoundWidened, TaskFailed, TaskStarted, UpdateReceived
from fedctl.records import TaskKey
from fedctl.runstate import RunState
from fedctl.strategies import build
from fedctl.weights import Weights
from tests.scenario.test_policy import contributors, goes_down, started, when
from tests.scenario.world import Killer, Scene, Watch, dying, federation, of_kind

four = ("alice", "bob", "carol", "dave")
FAST = {"alice": 1.0, "bob": 1.0, "carol": 2.0, "dave": 9.0}


def a_scene(
    folder: Path, names=four, *, rounds: int = 6, buffer: int = 2, slow=FAST, jitter=None, look_s=0.05, **more
) -> Scene:
    described = federation(*names, rounds=rounds, mode="buffered", buffer=buffer, **more)
    made = Scene(folder, described, look_s=look_s, jitter=jitter)
    made.world.slow.update(slow)
    return made


def replayed(made: Scene, state: RunState) -> list[str]:
    """The digest of each round's model, made again."""
    run, found = made.run, []
    received = {event.task: event for event in of_kind(made.events, UpdateReceived)}
    rule = staleness.build(made.federation.schedule.staleness)
    with TemporaryDirectory() as folder:
        for report in state.history:
            number, keys = report.number, {}
            for name in report.contributors:
                asked = number - report.staleness[name]
                keys[name] = next(key for key in received if (key.round, key.node, key.kind) == (asked, name, "train"))
            memory = run.memory(number - 1)
            closed = aggregate_round(
                model=run.round_model(number - 1),
                updates={name: (run.answer(key), received[key].examples) for name, key in keys.items()},
                memory=memory if memory.exists() else None,
                strategy=build(made.federation.strategy),
                model_out=Path(folder) / "model.safetensors",
                memory_out=Path(folder) / "memory.safetensors",
                late=rounds.late(run, number, {name: key.round for name, key in keys.items()}, rule),
            )
            found.append(closed.model.digest)
    return found


def assert_honest(made: Scene, state: RunState) -> None:
    """Each task was done once, each update counts once and each node once in a round, and all can be redone."""
    assert max(Counter(made.world.done).values()) == 1
    taken = [(r.number - r.staleness[name], name) for r in state.history for name in r.contributors]
    assert len(taken) == len(set(taken))
    for report in state.history:
        assert len(set(report.contributors)) == len(report.contributors) <= made.federation.schedule.buffer
        assert max(report.staleness.values()) <= made.federation.schedule.max_staleness
        assert report.staleness.keys() == set(report.contributors)
    assert replayed(made, state) == [report.model.digest for report in state.history]
    assert made.leftovers() == []


def test_fast_nodes_go_on_while_one_is_slow(tmp_path):
    made = a_scene(tmp_path)
    state = made.go()
    assert state.status == "finished"
    assert "dave" not in {name for report in state.history[:3] for name in report.contributors}
    assert all(len(report.contributors) == 2 for report in state.history)
    dave = [key for key in made.world.keys("train") if key.node == "dave"]
    assert dave == [TaskKey(round=1, node="dave")], "it is asked once, and goes on"
    took = (state.history[-1].closed_at - state.history[0].opened_at).total_seconds()
    assert took < 6 * 9 / 2, "the slow one is not waited for"
    assert_honest(made, state)


def test_a_late_update_counts_with_its_staleness(tmp_path):
    made = a_scene(tmp_path, rounds=8, slow={**FAST, "dave": 4.0})
    state = made.go()
    late = {r.number: r.staleness["dave"] for r in state.history if "dave" in r.contributors}
    assert late
    number, tau = next(iter(late.items()))
    assert tau == number - 1 >= 1
    report, run = state.history[number - 1], made.run
    before, after = Weights.open(run.round_model(number - 1))["w"], Weights.open(run.round_model(number))["w"]
    examples = {name: 10 + len(name) for name in report.contributors}
    moved = torch.zeros_like(before, dtype=torch.float64)
    for name in report.contributors:
        behind = report.staleness[name]
        base = Weights.open(run.round_model(number - 1 - behind))["w"].double()
        update = Weights.open(run.update(number - behind, name))["w"].double()
        moved += examples[name] / sum(examples.values()) * (1 + behind) ** -0.5 * (update - base)
    assert torch.allclose(after.double(), before.double() + moved, atol=1e-6)
    assert_honest(made, state)


def test_a_buffer_of_all_nodes_is_a_synchronous_run_to_the_bit(tmp_path):
    calm = Scene(tmp_path / "synchronous", federation(*four, rounds=3, quorum=1.0, strategy="fedavgm")).go()
    made = a_scene(tmp_path / "buffered", rounds=3, buffer=4, quorum=1.0, strategy="fedavgm", slow={})
    state = made.go()
    assert [r.model for r in state.history] == [r.model for r in calm.history]
    assert all(set(r.staleness.values()) == {0} for r in state.history)


def test_one_update_makes_a_model_where_the_buffer_is_one(tmp_path):
    made = a_scene(tmp_path, rounds=12, buffer=1, slow=dict.fromkeys(four, 1.0))
    state = made.go()
    assert [len(names) for names in contributors(made)] == [1] * 12
    assert max(tau for report in state.history for tau in report.staleness.values()) >= 2
    assert_honest(made, state)


def test_so_many_nodes_train_at_a_time_as_are_allowed(tmp_path):
    names = tuple(f"n{i}" for i in range(8))
    made = a_scene(tmp_path, names, rounds=5, buffer=3, concurrency=2, slow=dict.fromkeys(names, 1.0))
    at_work, most = set(), []

    def watch(event):
        match event:
            case RoundOpened() | RoundWidened():
                at_work.update(event.nodes)
            case UpdateReceived(task=key) | TaskFailed(task=key):
                at_work.discard(key.node)
            case _:
                pass
        most.append(len(at_work))

    state = made.go(Watch(watch))
    assert state.status == "finished"
    assert max(most) == 2
    assert [len(names) for names in contributors(made)] == [3] * 5, "others are asked until there are enough"
    assert_honest(made, state)


def test_one_that_is_too_late_is_stopped_and_begins_anew(tmp_path):
    made = a_scene(tmp_path, rounds=9, max_staleness=2, slow={**FAST, "dave": 1e6})
    state = made.go()
    assert state.status == "finished"
    dave = [key for key in made.world.keys("train") if key.node == "dave"]
    assert [key.round for key in dave][:3] == [1, 4, 7], "two models later its first would still have counted"
    assert made.world.works[dave[0]].result.error == "it was cancelled"
    assert state.nodes["dave"].strikes == 0
    assert_honest(made, state)


def test_a_deadline_is_of_one_training_and_frees_its_node(tmp_path):
    made = a_scene(tmp_path, rounds=9, deadline_s=5.0, slow={**FAST, "dave": 1e6})
    state = made.go()
    assert state.status == "finished"
    failed = [event for event in of_kind(made.events, TaskFailed) if event.task.node == "dave"]
    assert failed[0].reason == "the deadline of 5 s passed"
    asked = of_kind(made.events, RoundOpened)[0].at
    assert timedelta(seconds=5) <= failed[0].at - asked < timedelta(seconds=6)
    assert len({key for key in made.world.keys("train") if key.node == "dave"}) >= 2
    assert "dave" in {name for report in state.history for name in report.failed}
    assert_honest(made, state)


def test_one_that_goes_away_is_not_missed_and_hands_in_its_update_when_it_is_back(tmp_path):
    made = a_scene(tmp_path, rounds=12, slow={**FAST, "dave": 3.0})
    seen = []

    def back(event):
        seen.append(event)
        if isinstance(event, RoundAggregated) and event.round == 6:
            made.world.down.discard("dave")

    state = made.go(when(made, started("dave", 1), goes_down(made, "dave")), Watch(back))
    assert state.status == "finished"
    assert [event.node for event in of_kind(made.events, NodeLost)][:1] == ["dave"]
    (first, *_) = [r for r in state.history if "dave" in r.contributors]
    assert first.number - first.staleness["dave"] == 1, "what it was asked in the first round counted"
    assert first.number > 6
    assert_honest(made, state)


def test_with_too_few_nodes_a_round_closes_by_its_quorum_or_the_run_gives_up(tmp_path):
    barred = lambda event: isinstance(event, RoundOpened) and made.world.barred.update({"carol", "dave"})  # noqa: E731
    made = a_scene(tmp_path / "enough", buffer=3, quorum=2, slow={}, rounds=3)
    made.world.far.update(carol=1, dave=1)
    assert made.go(Watch(barred)).status == "finished"
    assert contributors(made) == [("alice", "bob")] * 3
    made = a_scene(tmp_path / "too-few", buffer=3, quorum=3, slow={}, rounds=3)
    made.world.far.update(carol=1, dave=1)
    state = made.go(Watch(barred))
    assert state.status == "failed"
    assert state.reason == (
        "round 1 has 2 of the 3 updates it needs (carol: permission denied; dave: permission denied)"
    )
    made.world.barred.clear()
    made.world.far.clear()
    assert made.go().status == "finished"


def test_the_last_model_is_scored_by_all_and_those_between_by_whoever_is_free(tmp_path):
    made = a_scene(tmp_path, rounds=6, slow={**FAST, "dave": 1000.0})
    state = made.go()
    assert set(state.evaluations[6]) == set(four)
    assert all("dave" not in state.evaluations[number] for number in range(1, 6)), "it was at work on the first model"


def test_a_held_round_is_committed_and_late_ones_go_on(tmp_path):
    made = a_scene(tmp_path, rounds=2)
    state = made.go(hold=True)
    assert state.status == "held"
    assert len(state.open.updates) >= 2
    assert made.go().status == "finished"
    assert_honest(made, made.state)


@pytest.mark.parametrize("nth", range(1, 52))
def test_dying_at_any_event_gives_the_same_models_where_one_trains_at_a_time(nth, tmp_path):
    """Who is asked follows from the seed and the journal: with one node at work, so does the order of the answers."""
    names = ("alice", "bob", "carol")
    calm = a_scene(tmp_path / "calm", names, rounds=3, buffer=2, concurrency=1, slow={}, strategy="fedavgm")
    made = a_scene(tmp_path / "hit", names, rounds=3, buffer=2, concurrency=1, slow={}, strategy="fedavgm")
    expected = calm.outcome(calm.go())
    assert len(calm.events) >= nth, "there is no such event"
    if made.dies(*([Killer(nth)] if nth % 2 else []), writer=dying(999 if nth % 2 else nth, 0.5)):
        made.go()
    assert made.outcome(made.state) == expected
    assert_honest(made, made.state)


@given(
    deaths=st.lists(st.tuples(st.sampled_from(["journal", "sink"]), st.integers(1, 60), st.floats(0, 1)), max_size=4),
    jitter=st.integers(0, 2**16),
    buffer=st.integers(1, 4),
    concurrency=st.sampled_from([None, 2, 3]),
    deadline_s=st.sampled_from([None, 6.0]),
    max_staleness=st.sampled_from([1, 3, 20]),
)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_whatever_befalls_a_buffered_run_it_can_be_made_again(
    deaths, jitter, buffer, concurrency, deadline_s, max_staleness
):
    with TemporaryDirectory() as folder:
        schedule = {"concurrency": concurrency, "deadline_s": deadline_s, "max_staleness": max_staleness, "quorum": 1}
        made = a_scene(Path(folder) / "run", rounds=6, buffer=buffer, jitter=jitter, look_s=0.2, **schedule)
        made.world.fail_at("bob", 1, 1)
        for way, nth, torn in deaths:
            if made.state.status == "finished":
                break
            made.dies(*([Killer(nth)] if way == "sink" else []), writer=dying(nth if way == "journal" else 999, torn))
        if made.state.status != "finished":
            made.go()
        assert made.state.is_over, "finished, or short of its quorum where all were late"
        assert made.state.status == "finished" or deadline_s
        assert_honest(made, made.state)


def test_an_update_that_a_power_cut_took_is_asked_for_again(tmp_path):
    made = a_scene(tmp_path, rounds=4)
    assert made.dies(Killer(next(_until_a_late_one(tmp_path / "calm"))))
    waiting = {**made.state.carried, **(made.state.open.updates if made.state.open else {})}
    assert waiting
    for update in waiting.values():
        path = made.run.answer(update.key)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    state = made.go()
    assert state.status == "finished"
    assert_honest(made, state)


def _until_a_late_one(folder: Path):
    """The number of the event with which the second round has an update."""
    calm = a_scene(folder, rounds=4)
    calm.go()
    for number, event in enumerate(calm.events, start=1):
        if isinstance(event, UpdateReceived) and event.task.round == 2:
            yield number


def test_nothing_is_started_twice_on_a_node_that_is_still_at_work(tmp_path):
    made = a_scene(tmp_path)
    made.go()
    begun = [event.task for event in of_kind(made.events, TaskStarted) if event.task.kind == "train"]
    assert len(begun) == len(set(begun))
    assert durable.digest(made.run.model) == made.state.model
