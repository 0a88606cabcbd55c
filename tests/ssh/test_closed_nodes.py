"""A whole run on nodes as closed as a policy makes them: enrolled keys, approved code, masks, no network, a fence."""

import sys

import pytest

from fedctl.node.agent import open_own
from fedctl.node.owner.confinement import unable
from fedctl.node.owner.departure import names_in
from fedctl.node.owner.terms import Limits
from tests.bed import LoopbackBed
from tests.ssh.conftest import SshPlace
from tests.ssh.owner import bring_up

NODES = ("alice", "bob", "carol")
POLICY = f"""
pythons: [{sys.executable}]
leave: {{metrics: [val_acc]}}
secure_aggregation: {{required: true, least: 3}}
limits: {{cpus: 1, memory: 2G, gpus: none, disk: 1G}}
rounds: 1
"""


@pytest.fixture(scope="module")
def place(make_place, tmp_path_factory):
    """Three owners who approve the code, and a coordinator."""
    able = [
        line
        for line, word in (("network: none", ("none", "any")), ("files: own", ("any", "own")))
        if not unable(Limits(), *word)
    ]
    with LoopbackBed(tmp_path_factory.mktemp("closed") / "bed") as bed:
        owners = [bring_up(bed, name) for name in NODES]
        for owner in owners:
            owner.enroll(bed.key, "\n".join([POLICY, *able]))
        place = SshPlace(**vars(make_place("digits")), bed=bed)
        place.put_on_bed(*NODES)
        file = place.folder / "fed.yaml"
        open_yet = file.read_text().replace("compare: true", "")
        file.write_text(f"{open_yet}\nprivacy: {{secure_aggregation: {{}}}}\n")
        place.fedctl("provision", code=4)
        for owner in owners:
            assert len(owner.approve_all()) == 1
        place.fedctl("launch", "--run", "r", "--set", "rounds=1")
        yield place, owners


def test_the_run_comes_to_its_end_and_nobody_sees_an_update(place):
    place, owners = place
    status = place.json("status", "r")
    assert status["state"] == "finished"
    assert set(status["metrics"]) == {"val_acc"}, "no other metric left"
    updates = list((place.folder / "runs" / "r" / "rounds" / "0001" / "updates").glob("*.safetensors"))
    assert len(updates) == 3
    for update in updates:
        with open_own(update, buffering=0) as file:
            assert names_in(file) == {"masked"}
    assert [owner.json("show")["trainings"] for owner in owners] == [1, 1, 1]
