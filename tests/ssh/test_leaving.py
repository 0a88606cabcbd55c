"""A run that needs no terminal, its log as it comes, and its end: no process and no file on any node."""

import os
import signal
import subprocess

import pytest

from tests.bed import LoopbackBed
from tests.bed.processes import wait_until
from tests.e2e.conftest import COMMAND
from tests.ssh.conftest import SshPlace
from tests.ssh.gates import Gate, make_wait

NODES = ("alice", "bob")


@pytest.fixture(scope="module")
def place(make_place, tmp_path_factory):
    with LoopbackBed(tmp_path_factory.mktemp("leaving") / "bed") as bed:
        bed.add_all(NODES)
        place = SshPlace(**vars(make_place("blank")), bed=bed)
        make_wait(place)
        place.put_on_bed(*NODES)
        yield place


@pytest.fixture(scope="module")
def gates(place):
    return {name: Gate(place.bed.nodes[name]) for name in NODES}


def detach(place, run: str, rounds: int) -> None:
    """Start a run from a shell whose whole process group is then killed."""
    command = [*COMMAND, "launch", "--detach", "--run", run, "--set", f"rounds={rounds}"]
    with subprocess.Popen(
        ["sh", "-c", '"$@"; sleep 600', "sh", *command],
        cwd=place.folder,
        env=place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            read_until(shell, "needs this terminal no more")
        finally:
            os.killpg(shell.pid, signal.SIGKILL)


def read_until(process, text: str) -> None:
    """Read a command's output until a line has the text."""
    seen = []
    while line := process.stdout.readline():
        seen.append(line)
        if text in line:
            return
    raise AssertionError("".join(seen))


def files_on_nodes(place) -> list[str]:
    """What stands below the folders that are fedctl's, but for what is the machine's: its ledger, and the agent."""
    return [
        str(path.relative_to(server.home))
        for server in place.bed.nodes.values()
        for path in server.fedctl_home.rglob("*")
        if path.is_file() and not path.name.startswith("agent-") and path.name != "ledger.jsonl"
    ]


def test_a_detached_run_is_watched_from_elsewhere_and_finishes(place, gates):
    detach(place, "away", rounds=2)
    gates["bob"].open(2)
    gates["alice"].await_training(1)
    log, status = place.start("logs", "alice", "--follow"), place.start("status", "--follow")
    try:
        read_until(log, "training number 1")
        assert place.json("status", "away")["state"] == "running"
        gates["alice"].open(1)
        read_until(log, "==> r0002/alice/a1 <==")
        read_until(log, "training number 2")
        gates["alice"].open(2)
        assert "run finished" in status.communicate(timeout=240)[0]
        log.communicate(timeout=120)
        assert (log.returncode, status.returncode) == (0, 0)
    finally:
        log.kill()
        status.kill()
    assert place.json("status", "away")["state"] == "finished"
    wait_until(lambda: place.left_on_nodes() == [], "processes are left on a node")


def test_a_run_that_is_stopped_leaves_no_process_and_one_that_is_cleaned_no_file(place, gates):
    before = [gates[name].begun() for name in NODES]
    detach(place, "stopped", rounds=1)
    for name, number in zip(NODES, before, strict=True):
        gates[name].await_training(number + 1)
    ended = place.json("stop", "stopped")
    assert (ended["coordinator"], ended["failed"]) == ("stopped", [])
    wait_until(lambda: place.processes() == place.left_on_nodes() == [], "processes are left")
    assert any("stopped" in name for name in files_on_nodes(place)), "what was gathered stays"

    for run in ("stopped", "away"):
        place.fedctl("clean", run)
    assert files_on_nodes(place) == []
    assert place.left_on_nodes() == []


def test_nodes_that_are_cleaned_have_nothing_of_fedctl(place):
    homes = [server.home for server in place.bed.nodes.values()]
    before = [sorted(home.iterdir()) for home in homes]
    assert all(home / ".fedctl" in files for home, files in zip(homes, before, strict=True))
    ended = place.json("clean", "--nodes")
    assert (ended["failed"], set(NODES) - set(ended["machines"])) == ([], set())
    for home, files in zip(homes, before, strict=True):
        assert sorted(home.iterdir()) == [file for file in files if file.name != ".fedctl"]
    assert place.left_on_nodes() == []
