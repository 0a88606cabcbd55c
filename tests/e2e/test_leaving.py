"""`clean --nodes`: after it no process and no file of fedctl on the nodes, and nobody else's are touched."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fedctl.errors import FedctlError
from fedctl.federation import Federation, Node, TaskSpec
from fedctl.host import Host, Work
from fedctl.hosts import Hosts
from fedctl.records import Blob
from tests.e2e.conftest import Place


@pytest.fixture(scope="module")
def places(make_place) -> tuple[Place, Place]:
    """Two federations on one machine, under one home."""
    mine, other = make_place("blank"), make_place("blank")
    return mine, Place(folder=other.folder, home=mine.home)


def test_nodes_are_left_as_they_were_found(places):
    mine, other = places
    mine.fedctl("launch", "--run", "held", "--hold", "--set", "rounds=1")
    assert mine.processes(), "the worker of a held run stays"

    refused = other.fedctl("clean", "--nodes", code=4)
    assert "a run of another federation is at work there: held" in refused.stderr
    assert mine.processes()
    assert (mine.home / "runs" / "held").is_dir()

    ended = mine.json("clean", "--nodes")
    assert (ended["machines"], ended["failed"], ended["run"]) == ({"local": "removed"}, [], None)
    assert mine.processes() == []
    assert not mine.home.exists()
    assert mine.json("status", "held")["state"] == "held", "what is here stays"

    mine.fedctl("aggregate", "held", "--commit")
    mine.fedctl("launch", "--resume", "held")
    assert mine.json("status", "held")["state"] == "finished"


def test_by_force_others_are_ended_too(places):
    mine, other = places
    mine.fedctl("launch", "--run", "again", "--hold", "--set", "rounds=1")
    ended = other.json("clean", "--nodes", "--force")
    assert ended["machines"] == {"local": "removed"}
    assert mine.processes() == []
    assert not mine.home.exists()


def test_with_a_run_it_goes_here_too_and_not_while_it_is_running(places):
    mine, _ = places
    running = mine.start("launch", "--run", "busy", "--set", "rounds=500")
    mine.wait_for(bool, "busy")
    assert "fedctl stop busy" in mine.fedctl("clean", "--nodes", code=7).stderr
    mine.fedctl("stop", "busy")
    running.communicate(timeout=30)
    mine.fedctl("clean", "busy", "--nodes")
    assert not (mine.folder / "runs" / "busy").exists()
    assert (mine.folder / "runs" / "held").exists()
    assert not mine.home.exists()


def a_federation(folder: Path, *nodes: Node) -> Hosts:
    nothing = Blob(digest="0" * 64, size=0)
    task = TaskSpec(model="model.py:Net", data="data.py:Data")
    federation = Federation(name="toy", folder=folder, task=task, nodes=nodes)
    work = Work(run="r", identity="me", bundle=nothing, bundle_path=folder, preload=(), cwd=str(folder))
    return Hosts(federation, work)


def test_a_folder_that_was_there_keeps_what_others_put_into_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDCTL_HOME", str(tmp_path / "own"))
    home = tmp_path / "scratch"
    theirs = ["notes.txt", "agent-smith.py", "env/bin/python", "runs/2026/result.csv", "bundle/x.js", "blobs/photo"]
    for name in theirs:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("mine")
    for name in ("env", "bundle"):
        (home / name / ("ab" * 32)).mkdir()
        (home / name / ("ab" * 32) / "file").touch()
    for name in ("env/{}.lock", "blobs/{}", "blobs/{}.part", "blobs.lock"):
        (home / name.format("cd" * 32)).touch()
    hosts = a_federation(tmp_path, Node(name="a", home=str(home)), Node(name="b", home=str(home), python="python3"))
    try:
        hosts.each(Host.tasks)
        assert len(list(home.glob("agent-????????????.py"))) == 1
        stopped = hosts.each(lambda host: host.stop_all(["me"], force=False))
        removed = hosts.each(Host.remove_all)
    finally:
        hosts.close()
    assert {*stopped.values(), *removed.values()} == {None}
    assert sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()) == sorted(theirs)
    assert not (tmp_path / "own").exists(), "where all was fedctl's, the folder goes as well"


def test_an_environment_that_is_being_made_is_ended_by_force_alone(tmp_path):
    home = tmp_path / "home"
    lock = home / "env" / f"{'ab' * 32}.lock"
    lock.parent.mkdir(parents=True)
    builder = subprocess.Popen(["flock", str(lock), "sleep", "99"], start_new_session=True)
    lock.with_suffix(".pid").write_text(str(builder.pid))
    lock.with_suffix(".json").write_text(json.dumps({"machine": os.uname().nodename}))
    lock.with_suffix(".asked-stranger").touch()
    hosts = a_federation(tmp_path, Node(name="a", home=str(home)))
    try:
        host = hosts.of("a")
        with pytest.raises(FedctlError, match="an environment is being made there"):
            host.stop_all([], force=False)
        with pytest.raises(FedctlError, match="the making of an environment"):
            host.remove_all()
        assert builder.poll() is None
        host.stop_all([], force=True)
        assert builder.wait(timeout=10) == -signal.SIGKILL
        host.remove_all()
    finally:
        builder.kill()
        hosts.close()
    assert not home.exists()


def test_hosts_that_are_away_cost_one_wait_and_not_one_each(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDCTL_HOME", str(tmp_path / "home"))
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nsleep 2\nexit 1\n")
    slow.chmod(0o700)
    pythons = [tmp_path / f"python-{number}" for number in range(40)]
    for python in pythons:
        python.symlink_to(slow)
    hosts = a_federation(tmp_path, *(Node(name=one.name, python=str(one)) for one in pythons))
    began = time.monotonic()
    try:
        answers = hosts.each(Host.stop)
    finally:
        hosts.close()
    assert time.monotonic() - began < 40, "one after the other they take 80 seconds and more"
    assert list(answers) == list(hosts.by_machine())
    assert sum(isinstance(answer, FedctlError) for answer in answers.values()) == 40
