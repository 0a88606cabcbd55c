"""One coordinator a run, also across hosts. Another host is a process that calls itself by another name, and whose
`flock` is its own, as it is on a folder that several machines mount.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedctl import journal, lease, rundir
from fedctl.errors import StateError
from fedctl.journal import Journal
from fedctl.lease import Superseded

ROOT = Path(__file__).parents[2]
WORK = """
import fcntl, socket, sys, time
from datetime import UTC, datetime
from pathlib import Path

path, host = sys.argv[1:]
if host != socket.gethostname():
    socket.gethostname = lambda: host
    fcntl.flock = lambda file, how: None

from fedctl import lease
from fedctl.errors import FedctlError
from fedctl.events import NodeReady
from fedctl.journal import Journal
from fedctl.rundir import RunDir

lease.BEAT_S = 0.1
run = RunDir(Path(path))
try:
    with run.lock(lambda text: print("told:", text, flush=True)) as held, Journal(run.journal, held.check) as written:
        print("held", flush=True)
        while True:
            written.append([NodeReady(at=datetime.now(UTC), node=host)])
            time.sleep(0.01)
except FedctlError as error:
    print(error.message, flush=True)
    sys.exit(error.exit_code)
"""


@pytest.fixture(autouse=True)
def swift(monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.1)


@pytest.fixture
def run(tmp_path):
    return rundir.create(tmp_path, "one", configuration="", bundle=b"", facts={})


@contextlib.contextmanager
def coordinator(run, host="there"):
    """A process that holds the run, or tries to, and writes to its journal without end."""
    command = [sys.executable, "-c", WORK, str(run.path), host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def heard(process) -> str:
    return process.stdout.readline().strip()


def is_held(process) -> bool:
    return heard(process) == "held"


def refusal(process) -> str:
    said = process.stdout.read().strip().splitlines()
    assert process.wait(timeout=60) == StateError.exit_code
    return said[-1]


# On one host


def test_a_killed_holder_of_this_host_is_succeeded_at_once(run):
    with coordinator(run, socket.gethostname()) as first:
        assert is_held(first)
        first.kill()
        first.wait()
    with coordinator(run, socket.gethostname()) as second:
        assert is_held(second), "nothing is said, and nobody is waited for"


def test_a_suspended_holder_of_this_host_is_a_holder(run):
    with coordinator(run, socket.gethostname()) as first:
        assert is_held(first)
        first.send_signal(signal.SIGSTOP)
        os.utime(run.path / "lock", (1e9, 1e9))
        assert run.is_alive()
        with coordinator(run, socket.gethostname()) as second:
            assert f"is held by process {first.pid}" in refusal(second)


def test_what_is_given_back_says_who_held_it_and_is_free_for_every_host(run):
    with run.lock():
        pass
    assert run.owner()["pid"] == os.getpid()
    assert run.owner()["host"] == socket.gethostname()
    with coordinator(run, "there") as other:
        assert is_held(other)


def test_the_last_sign_of_life_of_the_holder_before_is_known(run):
    with run.lock() as first:
        assert first.seen_at is None
        began = datetime.now(UTC)
        time.sleep(5 * lease.BEAT_S)
    with run.lock() as second:
        assert began + timedelta(seconds=4 * lease.BEAT_S) < second.seen_at <= datetime.now(UTC)


# Across hosts


def test_a_holder_on_another_host_is_seen_to_live(run):
    with coordinator(run) as other:
        assert is_held(other)
        assert run.is_alive()
        assert run.is_alive(surely=True)
        told = []
        with (
            pytest.raises(StateError, match=rf"run one is held by process {other.pid} of \S+ on there since"),
            run.lock(told.append),
        ):
            pass
        assert "run one was held on there" in told[0]
        before = len(journal.read(run.journal))
        time.sleep(0.5)
        assert len(journal.read(run.journal)) > before, "the holder was not disturbed"


def test_a_clock_that_is_hours_off_makes_no_living_holder_dead(run):
    with coordinator(run) as other:
        assert is_held(other)
        other.send_signal(signal.SIGSTOP)
        os.utime(run.path / "lock", (1e9, 1e9))
        assert not run.is_alive(), "a look at its age is all that there is time for"
        other.send_signal(signal.SIGCONT)
        assert run.is_alive(surely=True)


def test_a_dead_holder_on_another_host_is_succeeded_after_a_while(run):
    with coordinator(run) as other:
        assert is_held(other)
        other.kill()
        other.wait()
    assert run.is_alive(), "it was seen just now"
    assert not run.is_alive(surely=True)
    os.utime(run.path / "lock", (1e9, 1e9))
    assert not run.is_alive()
    told = []
    with run.lock(told.append) as held:
        held.check()
        assert run.owner()["pid"] == os.getpid()
        assert held.seen_at.timestamp() == 1e9
    assert told == [
        "run one was held on there: waiting 1 s for a sign of life from there",
        "there was none: this coordinator takes run one over",
    ]


def test_a_holder_that_was_suspended_and_succeeded_writes_nothing_more_and_leaves(run):
    with coordinator(run, "there") as first:
        assert is_held(first)
        while len(journal.read(run.journal)) < 3:
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        with run.lock(), Journal(run.journal) as written:
            count = len(written.events)
            first.send_signal(signal.SIGCONT)
            assert first.wait(timeout=60) == StateError.exit_code
            said = first.stdout.read()
            assert f"was taken over by process {os.getpid()} of " in said
            assert f" on {socket.gethostname()} " in said
            # What it had begun to write when it was suspended may be there; nothing that it began to write later is.
            assert len(journal.read(run.journal)) <= count + 1
            assert run.owner()["pid"] == os.getpid(), "it has not given back what is not its own"
            assert run.is_alive()


def test_of_two_that_succeed_a_dead_one_at_a_time_one_gets_the_run(run):
    with coordinator(run, "there") as dead:
        assert is_held(dead)
    with coordinator(run, "here") as one, coordinator(run, "elsewhere") as other:
        deadline = time.monotonic() + 60
        while one.poll() is other.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(4 * lease.BEAT_S)
        refused, holder = (one, other) if one.poll() is not None else (other, one)
        assert refused.poll() == StateError.exit_code
        assert holder.poll() is None
        assert run.owner()["pid"] == holder.pid


def test_a_lease_that_is_gone_with_its_folder_is_no_ones(run):
    with run.lock() as held:
        (run.path / "lock").unlink()
        with pytest.raises(Superseded, match="taken over by another one"):
            held.check()


def test_a_record_changes_in_place_and_keeps_its_length_so_that_none_is_read_by_half(run):
    records = []
    with run.lock() as held:
        for _ in range(11):
            held.beat()
            records.append((run.path / "lock").read_bytes())
    records.append((run.path / "lock").read_bytes())
    assert len({len(record) for record in records}) == 1
    assert len({json.loads(record)["beat"] for record in records}) >= 11
    assert [json.loads(record)["state"] for record in records[-2:]] == ["held", "free"]


@pytest.mark.parametrize("content", ["", "{", "[]", "\0" * 300, "null"])
def test_a_record_that_a_power_cut_took_is_no_ones(run, content):
    (run.path / "lock").write_text(content)
    assert run.owner() == {}
    assert not run.is_alive()
    with run.lock():
        assert run.is_alive()
        assert run.owner()["pid"] == os.getpid()
