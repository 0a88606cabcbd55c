"""Large models over lines that break in the middle: what had come stays, and is not sent again."""

import pytest

from tests.bed import LoopbackBed
from tests.ssh.conftest import SshPlace
from tests.ssh.gates import Gate, make_wait

SIZE = 5_000_000 * 4
BREAK_AT = 16_000_000
LINE = 3 * 2**20
"""What is lost with a line at most: the window of its server, and the block that its agent has not whole."""
REST = 2**20
"""Whatever else travels: the agent, the code, the words."""
LINES = {"near": 1, "far": 4}
NODES = tuple(LINES)


@pytest.fixture(scope="module")
def run(make_place, tmp_path_factory):
    """A run in which each model, and each update, breaks off once; by node, the bytes that it took each way.

    The far node gets the model over several lines, and its server allows one session on each.
    """
    with LoopbackBed(tmp_path_factory.mktemp("resuming") / "bed", relayed=True) as bed:
        near, far = bed.add("near"), bed.add("far", config=["MaxSessions 1"])
        relays = {server.name: bed.relay(server) for server in (near, far)}
        relays["far"].shape(delay=0.015)
        place = SshPlace(**vars(make_place("blank")), bed=bed)
        make_wait(place)
        place.edit(
            "model.py",
            "        self.layer = nn.Linear(features, 1)\n",
            "        self.layer = nn.Linear(features, 1)\n"
            f"        self.ballast = nn.Parameter(torch.randn({SIZE // 4}), requires_grad=False)\n",
        )
        for old, new in zip(("alice", "bob"), NODES, strict=True):
            place.edit("fed.yaml", f"name: {old},", f"name: {new},")
        place.put_on_bed(*NODES)
        gates = {name: Gate(bed.nodes[name]) for name in NODES}
        for relay in relays.values():
            relay.cut_after(BREAK_AT, "up")
        coordinator = place.start("launch", "--run", "r", "--set", "rounds=1")
        sent, came, connections = {}, {}, {}
        for name, relay in relays.items():
            gates[name].await_training(1)
            sent[name], came[name] = relay.carried("up"), -relay.carried("down")
            connections[name] = relay.connections()
            relay.cut_after(BREAK_AT, "down")
        for name in NODES:
            gates[name].open(1)
        said, _ = coordinator.communicate(timeout=240)
        assert coordinator.returncode == 0, said
        for name, relay in relays.items():
            came[name] += relay.carried("down")
            assert relay.connections() > connections[name], "the line did not break on the way back"
        yield place, sent, came, connections


@pytest.mark.parametrize("name", NODES)
def test_a_model_that_broke_off_goes_on_where_it_did(run, name):
    _, sent, _, connections = run
    assert connections[name] > LINES[name], "the line did not break"
    assert SIZE < sent[name] < SIZE + LINES[name] * LINE + REST < SIZE + BREAK_AT


@pytest.mark.parametrize("name", NODES)
def test_an_update_that_broke_off_goes_on_where_it_did(run, name):
    place, _, came, _ = run
    assert SIZE < came[name] < SIZE + 3 * LINE + REST < SIZE + BREAK_AT, "our own window is longer"
    (event,) = [e for e in place.events("r") if e["event"] == "UpdateReceived" and e["task"] == f"r0001/{name}/a1"]
    assert event["update"]["size"] > SIZE


def test_both_updates_are_in_the_model(run):
    place, *_ = run
    status = place.json("status", "r")
    assert status["state"] == "finished"
    assert sorted(status["history"][1]["contributors"]) == sorted(NODES)
