"""A run that meets every fault, and one that meets faults which last longer than it may wait."""

from collections.abc import Iterator

import pytest

from tests.bed.processes import wait_until
from tests.chaos.invariants import INVARIANTS
from tests.chaos.script import COORDINATOR, IN_A_ROUND, ON_NODES, drawn, every_fault
from tests.chaos.storm import RUN, STRIKES, Place, Storm, calm, open_bed

SCRIPT = every_fault()
ROUNDS = max(fault.when.round for fault in SCRIPT)

pytestmark = pytest.mark.timeout(600)  # whichever test is the first waits for the whole storm


@pytest.fixture(scope="module")
def calm_run(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return calm(tmp_path_factory.mktemp("calm") / "run", ROUNDS)


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storm]:
    folder = tmp_path_factory.mktemp("storm")
    with open_bed(folder) as bed:
        storm = Storm(Place(folder / "run", ROUNDS, bed), bed, SCRIPT)
        try:
            storm.go()
            yield storm
        finally:
            storm.close()


def test_the_run_recovers_from_every_fault(storm: Storm):
    assert [blow.fault for blow in storm.blows] == SCRIPT


@pytest.mark.parametrize("invariant", INVARIANTS, ids=[one.__name__ for one in INVARIANTS])
def test_after_the_storm(storm: Storm, calm_run: Place, invariant):
    assert invariant(storm, calm_run) == []


def test_only_what_ends_a_training_costs_an_attempt(storm: Storm):
    """A line, a server or an agent that goes away takes no work with it."""
    whats = {blow.fault.when.round: blow.fault.what for blow in storm.blows}
    failed = [event["task"] for event in storm.place.events() if event["event"] == "TaskFailed"]
    trainings = [key for key in failed if key[-2] == "a"]
    assert {whats[int(key[1:5])] for key in trainings} == {"kill the child", "reboot", "fill the disk"}
    assert {key[-2:] for key in trainings} == {"a1"}


def test_a_full_disk_is_named(storm: Storm):
    (number,) = [blow.fault.when.round for blow in storm.blows if blow.fault.what == "fill the disk"]
    key = f"r{number:04}/carol/a1"
    reasons = [e["reason"] for e in storm.place.events() if e["event"] == "TaskFailed" and e["task"] == key]
    assert len(reasons) == 1
    assert "File too large" in reasons[0]


def test_a_slow_line_is_not_taken_for_a_dead_one(storm: Storm):
    """Its node is not lost, though an update takes longer than a line may be silent."""
    (slow,) = [blow.fault for blow in storm.blows if blow.fault.what == "slow the line"]
    events = storm.place.events()
    opened = next(i for i, e in enumerate(events) if e["event"] == "RoundOpened" and e["round"] == slow.when.round)
    assert not [e for e in events[opened:] if e["event"] == "NodeLost"]


def test_whoever_watches_sees_that_a_node_is_away(storm: Storm):
    assert '"unreachable"' in (storm.place.run / "metrics.jsonl").read_text()


def test_the_script_has_every_kind_of_fault_and_a_kill_at_every_kind_of_event():
    assert set(ON_NODES) == set(STRIKES) == {fault.what for fault in SCRIPT if fault.who != COORDINATOR}
    assert {fault.when.event for fault in SCRIPT if fault.what == "kill"} >= {*IN_A_ROUND, "RunFinished"}
    assert drawn(3, 20) == drawn(3, 20) != drawn(4, 20)


# Faults that outlast the policy


@pytest.fixture(scope="module")
def outlasted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, list[int]]]:
    """A run with a quorum of two of three, and the exit codes of its coordinators.

    Bob's server stays down from the second round on, carol's too from the third; both are back for the resume.
    """
    folder = tmp_path_factory.mktemp("outlasted")
    with open_bed(folder, relayed=False) as bed:
        place = Place(folder / "run", 5, bed, schedule="{quorum: 2, patience: 2s}")
        coordinator = place.start("launch", "--run", RUN)
        try:
            for number, name in ((2, "bob"), (3, "carol")):
                wait_until(lambda: _opened(place, number), f"round {number} does not begin", 90)  # noqa: B023
                bed.nodes[name].stop()
            exits = [coordinator.wait(90)]
            for name in ("bob", "carol"):
                bed.nodes[name].start()
            coordinator = place.start("launch", "--resume", RUN)
            exits.append(coordinator.wait(90))
            yield place, exits
        finally:
            coordinator.kill()
            coordinator.wait()
            place.close()


def _opened(place: Place, number: int) -> bool:
    return any(event["event"] == "RoundOpened" and event["round"] == number for event in place.events())


def test_a_run_below_its_quorum_gives_up_and_can_be_taken_up_again(outlasted):
    place, exits = outlasted
    assert exits == [5, 0], place.said
    kinds = [event["event"] for event in place.events()]
    assert kinds.count("RunFailed") == 1
    assert kinds[-1] == "RunFinished"


def test_contributors_are_listed_as_they_were(outlasted):
    place, _ = outlasted
    contributors = {e["round"]: e["contributors"] for e in place.events() if e["event"] == "RoundAggregated"}
    assert contributors[1] == ["alice", "bob", "carol"]
    assert contributors[2] == ["alice", "carol"]
    assert sorted(contributors) == [1, 2, 3, 4, 5]
    assert contributors[5] == ["alice", "bob", "carol"]


def test_the_reason_names_the_nodes_that_are_missing(outlasted):
    place, _ = outlasted
    (failed,) = [event for event in place.events() if event["event"] == "RunFailed"]
    assert "bob" in failed["reason"] or "carol" in failed["reason"]
    assert {e["node"] for e in place.events() if e["event"] == "NodeLost"} == {"bob", "carol"}
