"""The main job over SSH: the real command, three real servers, and the same bits as on this machine."""

import re

import pytest

from tests.bed import LoopbackBed
from tests.e2e.conftest import Place
from tests.ssh.conftest import SshPlace

NODES = ("alice", "bob", "carol")
LAUNCH = ("launch", "--run", "r", "--set", "rounds=2", "--set", "compare=false")


@pytest.fixture(scope="module")
def over_ssh(make_place, tmp_path_factory):
    """A federation on three servers, one of which prints when a shell starts."""
    with LoopbackBed(tmp_path_factory.mktemp("digits") / "bed") as bed:
        bed.add_all(NODES[:2])
        bed.add(NODES[2], noise="echo welcome to carol\n")
        place = SshPlace(**vars(make_place("digits")), bed=bed)
        place.put_on_bed(*NODES)
        place.fedctl(*LAUNCH)
        yield place


@pytest.fixture(scope="module")
def on_this_machine(make_place, over_ssh):
    """The same federation without servers."""
    place = make_place("digits")
    config = (over_ssh.folder / "fed.yaml").read_text()
    (place.folder / "fed.yaml").write_text(re.sub(r"host: \w+, python: [^,]+", "host: local", config))
    place.fedctl(*LAUNCH)
    return place


def model_of(place: Place) -> bytes:
    return (place.folder / "runs" / "r" / "model.safetensors").read_bytes()


def test_three_servers_train_the_model_that_this_machine_does_bit_for_bit(over_ssh, on_this_machine):
    assert model_of(over_ssh) == model_of(on_this_machine)
    assert {node["state"] for node in over_ssh.json("status", "r")["nodes"]} == {"done"}


def test_each_server_was_logged_into_once_and_keeps_no_process(over_ssh):
    for server in over_ssh.bed.nodes.values():
        assert server.log.count("Accepted publickey") == 1
    assert over_ssh.left_on_nodes() == []
