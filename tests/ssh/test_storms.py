"""A run that meets all that breaks lines, each in the middle of a task: the same bits, and nothing done twice."""

import signal
import time

import pytest

from tests.bed import LoopbackBed, open_bed
from tests.bed.processes import wait_until
from tests.ssh.conftest import SshPlace
from tests.ssh.gates import Gate, make_wait, result_of, worker_of

BOUND_S = 2
RUN = "storm"


class Storm:
    """A run over SSH of which one node, alice, is hit once a round while it trains."""

    def __init__(self, place: SshPlace, bed: LoopbackBed) -> None:
        self.place, self.bed = place, bed
        self.server = bed.nodes["alice"]
        self.relay = bed.relay(self.server)
        self.gate = Gate(self.server)
        self.round = 0
        self.workers: dict[int, set[int]] = {}
        self.logins: dict[int, int] = {}
        self.coordinator = place.start("launch", "--run", RUN, "--set", f"rounds={len(STRIKES)}")

    def hit(self, strike) -> None:
        """Strike in the next round's training and let it go on; the node has done it, and is back, in the end."""
        self.round += 1
        self.gate.await_training(self.round)
        worker, logins = worker_of(self.server, RUN), self.server.log.count("Accepted publickey")
        strike(self)
        self.gate.open(self.round)
        wait_until(self.is_trained, "the update does not come", 60)
        self.workers[self.round] = {worker, worker_of(self.server, RUN)}
        self.logins[self.round] = self.server.log.count("Accepted publickey") - logins

    def go_on_without_a_coordinator(self) -> None:
        """The node trains to the end while nobody reaches it."""
        self.gate.open(self.round)
        wait_until(result_of(self.server, RUN, f"r{self.round:04}/alice/a1").exists, "the training does not go on", 30)
        assert not self.is_trained()

    def is_trained(self) -> bool:
        """The round's update of alice has come."""
        key = f"r{self.round:04}/alice/a1"
        return any(event["event"] == "UpdateReceived" and event["task"] == key for event in self.place.events(RUN))


def kill_the_connection(storm: Storm) -> None:
    storm.server.drop_sessions()


def stop_the_server(storm: Storm) -> None:
    storm.server.stop_server()
    storm.go_on_without_a_coordinator()
    time.sleep(2)
    storm.server.start()


def reset_the_line(storm: Storm) -> None:
    storm.relay.reset()


def kill_the_coordinator(storm: Storm) -> None:
    storm.coordinator.send_signal(signal.SIGKILL)
    storm.coordinator.communicate()
    storm.go_on_without_a_coordinator()
    storm.coordinator = storm.place.start("launch", "--resume", RUN)


def cut_the_line(storm: Storm) -> None:
    """Nothing passes and nothing is closed, for longer than the line may be silent."""
    storm.relay.cut()
    storm.go_on_without_a_coordinator()
    time.sleep(2 * BOUND_S + 2)
    storm.relay.heal()


STRIKES = (kill_the_connection, stop_the_server, reset_the_line, kill_the_coordinator, cut_the_line)
every_strike = pytest.mark.parametrize("number", range(1, len(STRIKES) + 1), ids=[one.__name__ for one in STRIKES])


@pytest.fixture(scope="module")
def storm(make_place, tmp_path_factory):
    with LoopbackBed(tmp_path_factory.mktemp("storm") / "bed", relayed=True) as bed:
        bed.add_all(["alice", "bob"])
        place = SshPlace(**vars(make_place("blank")), bed=bed)
        make_wait(place)
        alias = bed.alias("alice", bed.nodes["alice"], ServerAliveInterval=1, ServerAliveCountMax=BOUND_S)
        place.put_on_bed(alias, "bob")
        storm = Storm(place, bed)
        try:
            for strike in STRIKES:
                storm.hit(strike)
            said, _ = storm.coordinator.communicate(timeout=240)
            assert storm.coordinator.returncode == 0, said
        finally:
            storm.coordinator.kill()
        yield storm


@pytest.fixture(scope="module")
def calm(make_place, storm):
    """The same run on this machine, which nothing hits."""
    place = make_place("blank")
    make_wait(place)
    place.fedctl("launch", "--run", RUN, "--set", f"rounds={len(STRIKES)}")
    return place


def file_of(place, name: str) -> bytes:
    return (place.folder / "runs" / RUN / name).read_bytes()


def test_the_final_model_is_that_of_a_calm_run_bit_for_bit(storm, calm):
    assert file_of(storm.place, "model.safetensors") == file_of(calm, "model.safetensors")


@every_strike
def test_the_task_that_was_hit_gives_the_update_of_a_calm_run(storm, calm, number):
    update = f"rounds/{number:04}/updates/alice.safetensors"
    assert file_of(storm.place, update) == file_of(calm, update)


@every_strike
def test_the_worker_lives_through_it_and_is_found_again(storm, number):
    assert len(storm.workers[number]) == 1
    assert storm.workers[number] == storm.workers[1]
    assert storm.logins[number] >= 1, "the line was not made anew, so it was not hit"


def test_each_task_was_done_once(storm):
    assert storm.gate.begun() == len(STRIKES)
    events = storm.place.events(RUN)
    assert [event for event in events if event["event"] == "TaskFailed"] == []
    came = [event["task"] for event in events if event["event"] == "UpdateReceived"]
    assert sorted(came) == sorted(f"r{n:04}/{node}/a1" for n in range(1, 6) for node in ("alice", "bob"))


def test_no_process_is_left_on_a_node(storm):
    wait_until(lambda: storm.place.left_on_nodes() == [], "processes are left")


def test_whoever_watches_sees_that_the_node_is_away(storm):
    assert "unreachable" in file_of(storm.place, "metrics.jsonl").decode()


# A reboot, and a network that is gone


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
        coordinator = place.start("launch", "--run", RUN, "--set", "rounds=1")
        for gate in gates:
            gate.await_training(1)
        place.wait_for(lambda events: done(events, "ModelEvaluated") == ["r0000/alice/e1", "r0000/bob/e1"], RUN, 30)
        worker = worker_of(alice, RUN)
        bed.cut(bob)
        alice.reboot()
        assert alice.started() == []
        gates[1].open(1)
        wait_until(result_of(bob, RUN, "r0001/bob/a1").exists, "the training does not go on", 30)
        gates[0].await_training(2)
        assert worker_of(alice, RUN) != worker
        bed.heal(bob)
        gates[0].open(2)
        said, _ = coordinator.communicate(timeout=240)
        assert coordinator.returncode == 0, said
        yield place


def test_a_reboot_and_a_cut_change_no_bit_of_the_model(rebooted, calm):
    assert file_of(rebooted, "model.safetensors") == file_of(calm, "rounds/0001/model.safetensors")


def test_the_task_that_was_lost_was_made_again_and_no_other(rebooted):
    events = rebooted.events(RUN)
    assert done(events, "TaskFailed") == ["r0001/alice/a1"]
    assert done(events, "UpdateReceived") == ["r0001/alice/a2", "r0001/bob/a1"]


def test_the_node_that_was_cut_off_trained_once_and_was_reached_again(rebooted):
    bob = rebooted.bed.nodes["bob"]
    assert (bob.home / "begun").read_text().splitlines() == ["begun"]
    assert bob.log.count("Accepted publickey") == 2
