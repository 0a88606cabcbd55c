"""A node that is rebooted in a task, and one that is cut off from the network: what was lost is made again."""

import pytest

from tests.bed import open_bed
from tests.bed.processes import wait_until
from tests.ssh.conftest import SshPlace
from tests.ssh.gates import Gate, make_wait, result_of, worker_of

LAUNCH = ("launch", "--run", "r", "--set", "rounds=1")


def done(events, kind: str) -> list[str]:
    """The tasks that ended in events of that kind."""
    return sorted(event["task"] for event in events if event["event"] == kind)


@pytest.fixture(scope="module")
def rebooted(make_place, tmp_path_factory):
    """A run in whose only round alice is rebooted, and bob is cut off until he has trained to the end."""
    with open_bed(tmp_path_factory.mktemp("rebooted") / "bed") as bed:
        alice, bob = bed.add_all(["alice", "bob"])
        bed.alias("bob", bob, ServerAliveInterval=1, ServerAliveCountMax=2, ConnectTimeout=2)
        place = SshPlace(**vars(make_place("blank")), bed=bed)
        make_wait(place)
        place.put_on_bed("alice", "bob")
        gates = [Gate(alice), Gate(bob)]
        coordinator = place.start(*LAUNCH)
        for gate in gates:
            gate.await_training(1)
        place.wait_for(lambda events: done(events, "ModelEvaluated") == ["r0000/alice/e1", "r0000/bob/e1"], "r", 30)
        worker = worker_of(alice, "r")
        bed.cut(bob)
        alice.reboot()
        assert alice.started() == []
        gates[1].open(1)
        wait_until(result_of(bob, "r", "r0001/bob/a1").exists, "the training does not go on", 30)
        gates[0].await_training(2)
        assert worker_of(alice, "r") != worker
        bed.heal(bob)
        gates[0].open(2)
        said, _ = coordinator.communicate(timeout=60)
        assert coordinator.returncode == 0, said
        yield place


@pytest.fixture(scope="module")
def calm(make_place, rebooted):
    """The same run on this machine."""
    place = make_place("blank")
    make_wait(place)
    place.fedctl(*LAUNCH)
    return place


def model_of(place) -> bytes:
    return (place.folder / "runs" / "r" / "model.safetensors").read_bytes()


def test_the_model_is_that_of_a_calm_run_bit_for_bit(rebooted, calm):
    assert model_of(rebooted) == model_of(calm)


def test_the_task_that_was_lost_was_made_again_and_no_other(rebooted):
    events = rebooted.events("r")
    assert done(events, "TaskFailed") == ["r0001/alice/a1"]
    assert done(events, "UpdateReceived") == ["r0001/alice/a2", "r0001/bob/a1"]


def test_the_node_that_was_cut_off_trained_once_and_was_reached_again(rebooted):
    bob = rebooted.bed.nodes["bob"]
    assert (bob.home / "begun").read_text().splitlines() == ["begun"]
    assert bob.log.count("Accepted publickey") == 2
