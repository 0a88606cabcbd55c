"""The main job on real data: five nodes, from `init` to `clean`, with what it promises on the way."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter

import pytest

from tests.e2e.conftest import Place

ROUNDS = 3


@pytest.fixture(scope="module")
def finished(make_place) -> Place:
    place = make_place("digits")
    place.fedctl("launch", "--run", "calm", "--set", f"rounds={ROUNDS}")
    return place


def count(events: list[dict], kind: str) -> int:
    return sum(event["event"] == kind for event in events)


def model_of(place: Place, run: str) -> bytes:
    return (place.folder / "runs" / run / "model.safetensors").read_bytes()


def test_it_learns_and_says_what_federating_bought(finished):
    status = finished.json("status", "calm")
    assert status["state"] == "finished"
    assert (status["round"], status["rounds"]) == (ROUNDS, ROUNDS)
    assert status["metrics"]["val_acc"] > 0.75
    assert [entry["round"] for entry in status["history"]] == list(range(ROUNDS + 1))
    assert all(len(entry["contributors"]) == 5 for entry in status["history"][1:])
    assert {node["state"] for node in status["nodes"]} == {"done"}
    assert status["bytes"]["received"] > status["bytes"]["sent"] > 0
    compare = {row["node"]: row for row in status["compare"]}
    assert set(compare) == {"alice", "bob", "carol", "dave", "erin"}
    alone = sum(row["alone"]["val_acc"] for row in compare.values()) / 5
    assert status["metrics"]["val_acc"] > alone + 0.1
    assert all(set(row) >= {"alone", "federated", "alone_own", "federated_own"} for row in compare.values())


def test_the_result_loads_with_the_users_own_class(finished):
    code = (
        "from model import DigitsNet\n"
        "from safetensors.torch import load_file\n"
        "model = DigitsNet.load_from_checkpoint('runs/calm/model.ckpt')\n"
        "plain = load_file('runs/calm/model.safetensors')\n"
        "assert model.hparams.lr == 0.05\n"
        "assert all((plain[name] == value).all() for name, value in model.state_dict().items())\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=finished.folder, check=True)


def test_a_what_if_stands_beside_the_run(finished):
    before = model_of(finished, "calm")
    report = finished.json("aggregate", "calm", "--strategy", "median", "--round", "2")
    assert report["strategy"] == "median"
    assert {one["name"] for one in report["contributors"]} == {"alice", "bob", "carol", "dave", "erin"}
    again = finished.json("aggregate", "calm", "-o", "again.safetensors")
    assert (finished.folder / "again.safetensors").read_bytes() == before
    assert again["blob"]["digest"] == finished.json("status", "calm")["model"]["digest"]
    assert model_of(finished, "calm") == before


def test_plain_files_and_checkpoints_are_averaged(finished):
    updates = finished.folder / "runs/calm/rounds/0003/updates"
    files = [str(updates / "alice.safetensors"), "runs/calm/model.ckpt"]
    report = finished.json("aggregate", *files, "--weights", "3,1", "-o", "mean.safetensors")
    assert [one["share"] for one in report["contributors"]] == pytest.approx([0.75, 0.25])
    finished.fedctl("aggregate", *files, "-o", "mean.safetensors", code=2)


def test_the_log_of_a_node(finished):
    assert "max_epochs" in finished.fedctl("logs", "carol").stdout
    said = finished.fedctl("logs", "zed", code=2)
    assert "no node zed" in said.stderr


def test_a_name_that_is_taken(finished):
    said = finished.fedctl("launch", "--run", "calm", code=7)
    assert "run calm exists already" in said.stderr
    said = finished.fedctl("launch", "--resume", "calm", code=7)
    assert "has finished" in said.stderr


def test_killed_at_once_and_resumed_it_gives_the_same_bits(finished):
    """kill -9 of the coordinator in a round, Ctrl-C, then kill -9 of the worker; every finished task is kept."""
    killed = finished.start("launch", "--run", "wild", "--set", f"rounds={ROUNDS}")
    finished.wait_for(lambda events: count(events, "RunStarted") == 1, "wild")
    held = finished.fedctl("launch", "--resume", "wild", code=7)
    assert f"held by process {killed.pid}" in held.stderr
    assert finished.json("status", "wild")["state"] == "running"
    finished.wait_for(lambda events: count(events, "UpdateReceived") >= 1, "wild")
    killed.kill()
    killed.communicate()
    assert finished.json("status", "wild")["state"] == "interrupted"
    assert "fedctl launch --resume wild" in finished.fedctl("status", "wild").stdout

    second = finished.start("launch", "--resume", "wild")
    finished.wait_for(lambda events: count(events, "RunStarted") == 2, "wild")
    second.send_signal(signal.SIGINT)
    said, _ = second.communicate(timeout=30)
    assert second.returncode == 130, said
    assert "fedctl launch --resume wild" in said
    for pid in finished.processes():
        os.kill(pid, signal.SIGKILL)

    finished.fedctl("launch", "--resume", "wild")
    assert model_of(finished, "wild") == model_of(finished, "calm")
    received = Counter(e["task"] for e in finished.events("wild") if e["event"] == "UpdateReceived")
    assert max(received.values()) == 1
    assert len([task for task in received if re.search(r"/a\d+$", task)]) == 5 * ROUNDS


def test_status_follows_to_the_end(finished):
    said = finished.fedctl("status", "calm", "--follow").stdout
    assert "run finished" in said


def test_after_stop_and_clean_nothing_is_left(finished):
    for run in ("wild", "calm"):
        finished.fedctl("stop", run)
        finished.fedctl("clean", run)
    assert finished.processes() == []
    assert not (finished.folder / "runs").exists()
    left = {path.name.partition("-")[0] for path in finished.home.rglob("*") if path.is_file()}
    assert left <= {"agent", "blobs.lock", "ledger.jsonl"}  # these belong to the machine, not to a run
