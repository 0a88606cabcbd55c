"""A hospital that lets a key train, and only train: from the first ask to the revocation, over real servers."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.bed import LoopbackBed
from tests.bed.keys import make_key
from tests.bed.processes import wait_until
from tests.e2e.conftest import COMMAND
from tests.ssh.conftest import SshPlace
from tests.ssh.gates import Gate, make_wait
from tests.ssh.owner import Owner, bring_up

POLICY = """
pythons: [{python}]
data: {{paths: [{data}]}}
leave: {{metrics: [val_loss]}}
rounds: 4
"""
ONE_ROUND = ("--set", "rounds=1", "--set", "schedule.quorum=1")


@pytest.fixture(scope="module")
def place(make_place, tmp_path_factory):
    """A federation of a hospital, which is enrolled, and a university, which gives a shell. Nobody has a umask."""
    before = os.umask(0)
    with LoopbackBed(tmp_path_factory.mktemp("enrolment") / "bed") as bed:
        bed.add("bob")
        place = SshPlace(**vars(make_place("blank")), bed=bed)
        make_wait(place)
        place.edit(
            "data.py", "def __init__(self, site: int = 0,", "def __init__(self, site: int = 0, folder: str = '',"
        )
        place.put_on_bed("alice", "bob")
        yield place
    os.umask(before)


@pytest.fixture(scope="module")
def hospital(place) -> Owner:
    owner = bring_up(place.bed, "alice")
    rows = owner.server.home / "rows-of-patients"
    rows.mkdir()
    owner.enroll(place.bed.key, POLICY.format(python=sys.executable, data=rows))
    place.edit("fed.yaml", "data: {site: 0}", f"data: {{site: 0, folder: {rows}}}")
    (owner.server.home / "gate").write_text("1000")
    (place.bed.nodes["bob"].home / "gate").write_text("1000")
    return owner


def launch(place, run: str, *more: str) -> None:
    place.fedctl("launch", "--run", run, *ONE_ROUND, *more)


def contributors(place, run: str) -> list[str]:
    (aggregated,) = [event for event in place.events(run) if event["event"] == "RoundAggregated"]
    return aggregated["contributors"]


def test_what_is_not_approved_costs_one_sentence_and_the_run_goes_on(place, hospital):
    launch(place, "without")
    (declined,) = {event["reason"] for event in place.events("without") if event["event"] == "NodeDeclined"}
    (waiting,) = hospital.json("show")["pending"]
    remedy = f"`fedctl node approve {waiting['digest'][:12]}`"
    assert declined == f"its owner has not approved this code yet: ask them to run {remedy} there"
    assert contributors(place, "without") == ["bob"]
    assert not (hospital.home / "bundle").exists()


def test_check_names_what_waits_and_what_helps(place, hospital):
    found = place.json("check", code=4)["nodes"]
    findings = {one["name"]: one for one in found["alice"]}
    (waiting,) = hospital.json("show")["pending"]
    assert findings["owner"]["value"].startswith(f"enrolled, identity {hospital.json('show')['identity']}")
    assert findings["approval"]["value"] == f"code {waiting['digest'][:12]} waits for its owner"
    assert f"fedctl node approve {waiting['digest'][:12]}" in findings["approval"]["remedy"]
    assert findings["data"]["value"] == "no paths are named" or findings["data"]["passed"]
    assert "owner" not in {one["name"] for one in found["bob"]}


def test_a_run_that_cannot_do_without_the_node_waits_for_the_approval(place, hospital):
    with place.start("launch", "--run", "later", "--set", "rounds=1") as process:
        try:
            place.wait_for(lambda events: any(event["event"] == "NodeDeclined" for event in events), "later", 60)
            hospital.approve_all()
            said = process.communicate(timeout=60)[0]
        finally:
            process.kill()
    assert process.returncode == 0, said
    assert contributors(place, "later") == ["alice", "bob"]


def test_the_hospital_trains_and_nobody_else_sees_what_is_there(place, hospital):
    """What a process is called, and all files, on the node and here; the login's own umask is nothing."""
    seen: set[bytes] = set()
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.05):
            for pid in hospital.server.started():
                try:
                    seen.add(Path(f"/proc/{pid}/cmdline").read_bytes())
                except OSError:
                    continue

    looking = threading.Thread(target=look)
    looking.start()
    try:
        launch(place, "both")
    finally:
        is_over.set()
        looking.join()
    assert contributors(place, "both") == ["alice", "bob"]
    assert any(b"fedctl.node.worker" in words for words in seen)
    secret = (hospital.folder / "identity").read_bytes().splitlines()[1][40:70]
    for words in seen:
        assert secret not in words
        assert b"rows-of-patients" not in words
    for folder in (hospital.folder, hospital.home, place.folder / "runs" / "both", place.bed.nodes["bob"].fedctl_home):
        for path in [folder, *folder.rglob("*")]:
            is_open = stat.S_IMODE(path.lstat().st_mode) & 0o077
            assert not is_open or path.is_symlink() or place.folder in path.parents, path
    assert stat.S_IMODE((place.folder / "runs" / "both").stat().st_mode) == 0o700


def test_metrics_that_may_not_leave_do_not(place, hospital):
    scores = [event for event in place.events("both") if event["event"] == "ModelEvaluated"]
    assert {event["task"].split("/")[1] for event in scores} == {"alice", "bob"}
    told = [event for event in place.events("both") if event["event"] == "UpdateReceived"]
    metrics = {event["task"].split("/")[1]: event["metrics"] for event in told}
    assert metrics["alice"] == {}
    assert "train_loss" in metrics["bob"]
    assert all("train_loss" not in line for line in (hospital.folder / "ledger.jsonl").read_text().splitlines())


def test_a_second_key_knows_nothing_of_the_first_ones_run(place, hospital, tmp_path):
    key = make_key(tmp_path / "second")
    hospital.enroll(key, POLICY.format(python=sys.executable, data=hospital.server.home / "rows-of-patients"))
    place.bed.alias("alice", hospital.server, IdentityFile=key)
    try:
        place.fedctl("clean", "both", "--nodes")
    finally:
        place.bed.alias("alice", hospital.server, IdentityFile=place.bed.key)
        hospital.node("revoke", "--key", f"{key}.pub")
    assert list((hospital.home / "runs").glob("both*"))


def test_a_task_that_names_another_path_is_refused_and_the_run_says_why(place, hospital):
    launch(place, "elsewhere", "--set", "nodes.alice.data={site: 0, folder: /etc}")
    reasons = {event["reason"] for event in place.events("elsewhere") if event["event"] == "TaskFailed"}
    assert any("'/etc'" in reason for reason in reasons), reasons
    assert contributors(place, "elsewhere") == ["bob"]


def test_once_its_trainings_are_used_up_it_trains_no_more(place, hospital):
    trained = hospital.json("show")["trainings"]
    assert 1 <= trained <= 4
    place.fedctl("launch", "--run", "many", "--set", "rounds=5", "--set", "schedule.quorum=1")
    assert hospital.json("show")["trainings"] == 4
    reasons = {event["reason"] for event in place.events("many") if event["event"] == "TaskFailed"}
    assert any("4 trainings in all" in reason for reason in reasons), reasons


def test_a_key_that_is_revoked_amid_a_training_ends_it_at_once(place, hospital):
    file = hospital.server.folder / "policy.yaml"
    file.write_text(file.read_text().replace("rounds: 4", "rounds: 100"))
    hospital.node(
        "enroll", "--key", f"{place.bed.key}.pub", "--policy", file, "--authorized-keys", hospital.authorized_keys
    )
    gate = Gate(hospital.server)
    begun = gate.begun()
    process = subprocess.Popen(
        [
            *COMMAND,
            "launch",
            "--run",
            "revoked",
            *ONE_ROUND,
            "--set",
            "schedule.patience=1s",
        ],
        cwd=place.folder,
        env=place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: gate.begun() > begun, "no training begins", 60)
        hospital.node("revoke")
        wait_until(lambda: hospital.server.started() == [], "something of the key's lives on")
        said = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert contributors(place, "revoked") == ["bob"], said
    assert place.bed.ssh("alice", "agent-0123456789ab").returncode == 255
