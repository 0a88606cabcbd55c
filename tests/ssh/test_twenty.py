"""Twenty nodes at once: each a server, a line and an agent of its own.

They share a home, as the machines of a cluster do, and with it one worker: twenty imports of torch would take minutes
on a small machine, and would tell nothing of the lines.
"""

import sys

import pytest

from tests.bed import LoopbackBed
from tests.ssh.conftest import SshPlace

NAMES = [f"node{number}" for number in range(20)]


@pytest.fixture(scope="module")
def place(make_place, tmp_path_factory):
    with LoopbackBed(tmp_path_factory.mktemp("twenty") / "bed") as bed:
        bed.add("first")
        shared = bed.nodes["first"].fedctl_home
        for server in bed.add_all(NAMES, environment={"FEDCTL_HOME": str(shared)}):
            server.fedctl_home = shared
        place = SshPlace(**vars(make_place("blank")), bed=bed)
        file = place.folder / "fed.yaml"
        head = file.read_text().split("nodes:", 1)[0]
        common = f"python: {sys.executable}, accelerator: cpu, threads: 1"
        nodes = [
            f"  - {{name: {name}, host: {name}, {common}, data: {{site: {i % 3}}}}}\n" for i, name in enumerate(NAMES)
        ]
        file.write_text(f"{head}nodes:\n{''.join(nodes)}")
        yield place


def test_twenty_nodes_train_together(place):
    place.fedctl("launch", "--run", "r", "--set", "rounds=1")
    status = place.json("status", "r")
    assert status["state"] == "finished"
    assert sorted(status["history"][1]["contributors"]) == sorted(NAMES)
    for name in NAMES:
        assert place.bed.nodes[name].log.count("Accepted publickey") == 1
    assert place.left_on_nodes() == []
