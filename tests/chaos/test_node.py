"""What a node survives: damaged and full disks, losses of power, want of memory, and the death of any process.

Real agents and workers; a trainer of a few lines stands in for Lightning's, so that a worker is there at once.
"""

import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fedctl.errors import ConnectionLost, NodeError
from fedctl.host import Host, Work
from fedctl.node import worker
from fedctl.records import Blob, Task, TaskKey
from fedctl.transfer import put
from fedctl.transports.local import LocalTransport
from tests.contract.test_worker import Machine, packed, processes, until

TRAINER = """
import hashlib, os, time
from pathlib import Path
from fedctl.node.agent import write_whole
from fedctl.records import Blob, Progress, Result

def perform(task, models, folder, report, threads):
    do = task.data_args
    for path in models.values():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    with open(do["begun"], "a") as file:
        file.write(f"{task.key}\\n")
    print("this is", task.key)
    report(Progress(key=task.key, phase="training", step=1, steps=2))
    if do.get("die"):
        Path(do["die"]).write_text("oom_kill 5\\n")
        os.kill(os.getpid(), 9)
    while "gate" in do and not Path(do["gate"]).exists():
        time.sleep(0.01)
    time.sleep(do.get("seconds", 0))
    data = str(task.key).encode() + b"." * do.get("bytes", 0)
    write_whole(folder / "update.safetensors", data)
    update = Blob(digest=hashlib.sha256(data).hexdigest(), size=len(data))
    return Result(key=task.key, examples=7, update=update)
"""
FULL = re.compile("no space left on device", re.IGNORECASE)
READ_ONLY = re.compile("read-only file system", re.IGNORECASE)
MODEL = bytes(range(256)) * 400
STORM_S = 8.0


class Node(Machine):
    """A machine, and the gates and the book of its tasks, which are on another disk than its home."""

    def __init__(self, home, content, **worker):
        home.mkdir(exist_ok=True)
        super().__init__(home, content, **worker)
        self.outside = home.parent
        self.hosts = []
        self.book = self.outside / "begun"

    def task(self, key, models=(), **do):
        do["begun"] = str(self.book)
        if "gate" in do:
            do["gate"] = str(self.outside / do["gate"])
        models = {f"m{number}": blob for number, blob in enumerate(models)}
        common = {"seed": 1, "model": "", "model_args": {}, "data": "", "trainer": {}}
        return Task(key=TaskKey.parse(key), data_args=do, models=models, **common)

    def ask_for(self, key, models=(), **do):
        return self.start(key, task=self.task(key, models, **do).to_json())

    def open(self, gate):
        (self.outside / gate).touch()

    def begun(self):
        return self.book.read_text().splitlines() if self.book.exists() else []

    def give(self, content=MODEL):
        blob = Blob(digest=hashlib.sha256(content).hexdigest(), size=len(content))
        (self.outside / blob.digest).write_bytes(content)
        put(self.line, blob, self.outside / blob.digest)
        return blob

    def host(self, transport=None):
        """The coordinator's view of the same machine and run."""
        bundle = Blob(digest=self.digest, size=len(self.content))
        (self.outside / "bundle.tar").write_bytes(self.content)
        work = Work(
            **self.run, bundle=bundle, bundle_path=self.outside / "bundle.tar", preload=[], cwd=self.worker["cwd"]
        )
        transport = transport or LocalTransport(home=str(self.home))
        self.hosts.append(Host(transport, python=sys.executable, slots=self.worker["slots"], work=work))
        return self.hosts[-1]

    def close(self):
        for host in self.hosts:
            host.close()
        super().close()

    def lose_power(self):
        """Every process of the node ends at once."""
        while found := processes(self.home):
            for pid in found:
                with_no_error(os.kill, pid, signal.SIGKILL)
            for line in self.lines:
                line.close()
        self.lines.clear()

    def boot(self):
        self.line = self.connect()


def with_no_error(call, *arguments):
    try:
        call(*arguments)
    except ProcessLookupError:
        return


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("project"), lightning=TRAINER)


@pytest.fixture
def node(tmp_path, content):
    node = Node(tmp_path / "home", content)
    yield node
    node.close()


class Slow:
    """The local transport over lines on which whatever is longer than a few words takes its time."""

    def __init__(self, home, seconds):
        self.inner = LocalTransport(home=str(home))
        self.seconds = seconds

    def open(self, argv):
        process = self.inner.open(argv)
        write = process.write

        def slowly(data):
            if len(data) >= len(MODEL):
                time.sleep(self.seconds)
            write(data)

        process.write = slowly
        return process


def test_what_a_model_takes_on_the_line_is_not_left_for_the_training(node):
    path = node.outside / "model"
    path.write_bytes(MODEL)
    blob = Blob(digest=hashlib.sha256(MODEL).hexdigest(), size=len(MODEL))
    task = replace(node.task("r0001/a/a1", [blob]), seconds=60.0)
    host = node.host(Slow(node.home, 1.5))
    done = host.perform(task, {"m0": path}, started=lambda: None, progressed=lambda _: None)
    assert done.traffic.sent == blob.size
    told = json.loads((node.folder / "r0001-a-a1" / "task.json").read_text())["seconds"]
    assert 1.0 <= told <= 58.5


# The disk is damaged


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a bit flipped": flip,
    "truncated": lambda path: os.truncate(path, 1000),
    "empty": lambda path: os.truncate(path, 0),
    "gone": Path.unlink,
}
damaged = pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)


def perform(host, node, task, blob, started=lambda: None):
    paths = dict.fromkeys(task.models, node.outside / blob.digest)
    return host.perform(task, paths, started=started, progressed=lambda _: None)


@damaged
def test_a_damaged_model_is_sent_again_and_costs_no_attempt(node, damage):
    host, blob = node.host(), node.give()
    node.ask_for("r0001/gate/a1", gate="gate")
    node.progress("r0001/gate/a1")
    starts = []

    def spoil():
        if not starts:
            damage(node.home / "blobs" / blob.digest)
            node.open("gate")
        starts.append(1)

    done = perform(host, node, node.task("r0001/a/a1", [blob]), blob, started=spoil)
    assert (done.result.error, done.result.examples) == (None, 7)
    assert (len(starts), done.traffic.sent) == (2, len(MODEL))
    assert node.begun() == ["r0001/gate/a1", "r0001/a/a1"]


def test_a_disk_that_damages_a_model_every_time_is_a_failure_by_name(node):
    host, blob = node.host(), node.give()
    node.ask_for("r0001/gate/a1", gate="gate1")
    starts = []

    def spoil():
        """The task waits between two gates, so that it finds the blob as it is left here, and the next one holds it."""
        starts.append(1)
        until(lambda: [entry for entry in (node.folder / "queue").iterdir() if entry.name.endswith("r0001-a-a1")])
        flip(node.home / "blobs" / blob.digest)
        node.ask_for(f"r0001/gate/a{len(starts) + 1}", gate=f"gate{len(starts) + 1}")
        node.open(f"gate{len(starts)}")

    done = perform(host, node, node.task("r0001/a/a1", [blob]), blob, started=spoil)
    assert done.result.error == "what the task needs does not stay whole on the disk there"
    assert done.result.retryable
    assert len(starts) == 3
    assert "r0001/a/a1" not in node.begun()
    node.open("gate4")
    done = perform(host, node, node.task("r0001/a/a2", [blob]), blob)
    assert done.result.error is None, "and a disk that came to its senses is used again"


def test_code_that_vanished_is_sent_again_and_costs_no_attempt(node):
    host, blob = node.host(), node.give()
    node.ask_for("r0001/gate/a1", gate="gate")
    node.progress("r0001/gate/a1")

    def lose():
        if not (node.outside / "gate").exists():
            shutil.rmtree(node.home / "bundle" / node.digest)
            flip(node.home / "blobs" / node.digest)
            node.open("gate")

    done = perform(host, node, node.task("r0001/a/a1", [blob]), blob, started=lose)
    assert done.result.error is None
    assert node.begun() == ["r0001/gate/a1", "r0001/a/a1"]


@damaged
def test_an_update_that_is_damaged_before_it_is_fetched_is_an_error_and_no_loop(node, damage, tmp_path):
    host, blob = node.host(), node.give()
    done = perform(host, node, node.task("r0001/a/a1", [blob], bytes=5000), blob)
    damage(node.folder / "r0001-a-a1/update.safetensors")
    with pytest.raises(NodeError) as refusal:
        host.fetch_update(TaskKey.parse("r0001/a/a1"), done.result.update, tmp_path / "update")
    assert not isinstance(refusal.value, ConnectionLost), "it is a failure of this attempt, and not of the line"
    assert not (tmp_path / "update").exists()


# The power is lost


@pytest.mark.parametrize("left", [b"", b'{"key": "r0001/a', b"\0" * 500, None], ids=["empty", "torn", "zeros", "none"])
def test_a_task_whose_file_did_not_reach_the_disk_is_begun_when_it_is_asked_for_again(node, left):
    for key in ("r0001/gate/a1", "r0001/a/a1"):
        node.ask_for(key, gate="gate")
    node.progress("r0001/gate/a1")
    node.lose_power()
    lost = node.folder / "r0001-a-a1/task.json"
    lost.write_bytes(left) if left is not None else lost.unlink()
    (node.folder / "worker.json").write_bytes(b"")
    node.boot()
    node.open("gate")
    node.ask_for("r0001/gate/a1")
    assert node.ask_for("r0001/a/a1")["state"] == "adopted"
    assert node.result("r0001/a/a1").error is None
    assert node.result("r0001/gate/a1").error == "the process that worked on the task is gone"
    assert node.begun() == ["r0001/gate/a1", "r0001/a/a1"]


def test_a_task_whose_place_in_the_queue_did_not_reach_the_disk_is_begun_when_it_is_asked_for_again(node):
    for key in ("r0001/gate/a1", "r0001/a/a1"):
        node.ask_for(key, gate="gate")
    node.progress("r0001/gate/a1")
    node.lose_power()
    for entry in (node.folder / "queue").iterdir():
        entry.unlink()
    node.boot()
    node.open("gate")
    assert node.ask_for("r0001/a/a1")["state"] == "adopted"
    assert node.result("r0001/a/a1").error is None


def test_what_is_finished_is_known_after_a_loss_of_power_and_not_trained_again(node):
    node.ask_for("r0001/a/a1")
    node.result("r0001/a/a1")
    node.lose_power()
    node.boot()
    assert node.ask_for("r0001/a/a1")["state"] == "done"
    assert node.begun() == ["r0001/a/a1"]


# The disk is full, or takes no writing


def as_root(*command):
    subprocess.run([*([] if os.geteuid() == 0 else ["sudo", "-n"]), *command], check=True)


@contextmanager
def mounted(home, *options):
    home.mkdir(exist_ok=True)
    as_root("mount", *options, str(home))
    try:
        yield
    finally:
        as_root("umount", "--lazy", str(home))


@contextmanager
def read_only(home):
    """Every path below the home leads to a read-only mount, as after an error of its disk."""
    with mounted(home, "--bind", str(home)):
        as_root("mount", "-o", "remount,bind,ro", str(home))
        yield


@pytest.fixture
def small(tmp_path, content):
    """A node whose home is a disk of 8 MiB."""
    owner = f"size=8m,uid={os.getuid()},gid={os.getgid()}"
    with mounted(tmp_path / "home", "-t", "tmpfs", "-o", owner, "none"):
        node = Node(tmp_path / "home", content)
        yield node
        node.close()


def fill(home, *, leaving=0):
    """Leave so many bytes of the disk free."""
    disk = os.statvfs(home)
    with (home / "filler").open("wb") as file:
        file.write(bytes(max(0, disk.f_bavail * disk.f_frsize - leaving)))


def clear(home):
    (home / "filler").unlink()


def halves(home):
    """What was begun to be written and has not got its name."""
    return [
        path for path in home.rglob("*") if path.name.startswith(".") or ".tmp-" in path.name or ".part" in path.name
    ]


def test_an_update_that_does_not_fit_is_a_failure_by_name_and_leaves_the_room_that_it_took(small):
    fill(small.home, leaving=2**20)
    small.ask_for("r0001/a/a1", bytes=3 * 2**20)
    result = small.result("r0001/a/a1")
    assert FULL.search(result.error)
    assert result.retryable
    assert not halves(small.home)
    small.ask_for("r0001/a/a2", bytes=2**19)
    assert small.result("r0001/a/a2").error is None


def test_a_disk_that_takes_not_even_a_result_is_told_of_and_once_there_is_room_all_goes_on(small):
    worker = start_gated(small)
    fill(small.home)
    small.open("gate")
    for key in ("r0001/a/a1", "r0001/b/a1"):
        result = small.result(key)
        assert FULL.search(result.error)
        assert result.retryable
    with pytest.raises(NodeError, match=FULL):
        small.ask_for("r0001/a/a2")
    clear(small.home)
    for key in ("r0001/a/a3", "r0001/b/a2"):
        small.ask_for(key)
        assert small.result(key).error is None
    assert (small.pid(), small.begun()) == (worker, ["r0001/a/a1", "r0001/a/a3", "r0001/b/a2"])
    assert not halves(small.home)


def start_gated(node):
    """One task runs, and one waits behind it; returns the worker's process."""
    node.ask_for("r0001/a/a1", gate="gate")
    node.progress("r0001/a/a1")
    node.ask_for("r0001/b/a1")
    return node.pid()


def test_a_process_that_dies_while_the_disk_is_full_is_told_of_and_the_worker_lives(small):
    worker = start_gated(small)
    fill(small.home)
    os.kill(small.pid("r0001/a/a1"), signal.SIGKILL)
    assert FULL.search(small.result("r0001/a/a1").error)
    assert FULL.search(small.result("r0001/b/a1").error)
    clear(small.home)
    small.ask_for("r0001/a/a2")
    assert small.result("r0001/a/a2").error is None
    assert small.pid() == worker


def test_a_model_that_does_not_fit_is_refused_by_name_and_leaves_the_room_that_it_took(small):
    fill(small.home, leaving=2**20)
    with pytest.raises(NodeError, match=FULL):
        small.give(os.urandom(3 * 2**20))
    assert not halves(small.home)
    assert small.give(os.urandom(2**19))


def test_a_file_that_grows_past_what_its_owner_allows_is_a_failure_by_name(node):
    node.ask_for("r0001/a/a1")
    node.result("r0001/a/a1")
    for pid in processes(node.home):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (10_000, 10_000))
    node.ask_for("r0001/a/a2", bytes=20_000)
    result = node.result("r0001/a/a2")
    assert "File too large" in result.error
    assert result.retryable
    assert not halves(node.home)
    with pytest.raises(NodeError, match="File too large"):
        node.give()
    assert not halves(node.home)


def test_a_home_that_becomes_read_only_is_told_of_and_once_it_is_mended_all_goes_on(node):
    start_gated(node)
    with read_only(node.home):
        node.open("gate")
        for key in ("r0001/a/a1", "r0001/b/a1"):
            result = node.result(key)
            assert READ_ONLY.search(result.error)
            assert result.retryable
        for refused in (lambda: node.ask_for("r0001/c/a1"), node.give):
            with pytest.raises(NodeError, match=READ_ONLY):
                refused()
    node.ask_for("r0001/a/a2")
    assert node.result("r0001/a/a2").error is None


# The kernel ends a process


def test_a_process_that_the_kernel_ended_for_want_of_memory_is_told_apart(tmp_path):
    """The kernel's count is a file here, in the place of /proc/vmstat; the process and its death are real."""
    count = tmp_path / "vmstat"
    count.write_text("nr_free_pages 7\noom_kill 4\n")
    source = Path(worker.__file__).read_text()
    assert source.count('"/proc/vmstat"') == 1
    content = packed(tmp_path, lightning=TRAINER, worker=source.replace("/proc/vmstat", str(count)))
    node = Node(tmp_path / "home", content)
    node.ask_for("r0001/a/a1", die=str(count))
    result = node.result("r0001/a/a1")
    assert result.error == "the process was killed by the kernel: out of memory"
    assert result.retryable
    node.ask_for("r0001/a/a2", gate="gate")
    node.progress("r0001/a/a2")
    os.kill(node.pid("r0001/a/a2"), signal.SIGKILL)
    assert node.result("r0001/a/a2").error == "the process was killed by SIGKILL (out of memory, or by hand)"
    node.close()


# The clock jumps


def test_a_clock_that_jumps_decides_nothing_but_who_is_first(node):
    keys = [f"r0001/{name}/a1" for name in "abcd"]
    for key in keys:
        node.ask_for(key, **({"gate": "gate"} if key == keys[0] else {}))
    node.progress(keys[0])
    entries = sorted((node.folder / "queue").iterdir())
    year = 365 * 24 * 3600 * 10**9
    for entry, shift in zip(entries, (year, 0, -year), strict=True):
        stamp, _, name = entry.name.partition("-")
        entry.rename(entry.with_name(f"{int(stamp) + shift:020d}-{name}"))
    node.open("gate")
    for key in keys:
        assert node.result(key).error is None
    assert node.begun() == [keys[0], keys[3], keys[2], keys[1]]


# Anything dies at any moment


@pytest.mark.parametrize("seed", [1])
def test_whatever_is_killed_each_task_is_done_once_and_nothing_is_left(tmp_path, content, seed):
    node = Node(tmp_path / "home", content, slots=2)
    host, blob, chance = node.host(), node.give(), random.Random(seed)
    names, is_over = [f"n{number}" for number in range(6)], threading.Event()
    done = Counter()

    def train(name):
        """Rounds of one node, as a coordinator asks for them: a failure is tried again, a line looked for again."""
        attempts = Counter()
        while not is_over.is_set() or not done[name]:
            number = done[name] + 1
            attempts[number] += 1
            key = f"r{number:04d}/{name}/a{attempts[number]}"
            task = node.task(key, [blob], seconds=chance.random() / 5, bytes=2**16)
            while True:
                try:
                    result = perform(host, node, task, blob).result
                except ConnectionLost:
                    continue
                break
            if result.error is None:
                update = tmp_path / f"update-{name}"
                fetch(host, task.key, result.update, update)
                assert update.read_bytes().startswith(key.encode())
                done[name] += 1
            else:
                assert result.retryable, result

    def kill():
        ends = time.monotonic() + STORM_S
        while time.monotonic() < ends:
            time.sleep(chance.random() / 2)
            victims = sorted(processes(node.home))
            if victims:
                with_no_error(os.kill, chance.choice(victims), signal.SIGKILL)
                killed.append(1)
        is_over.set()

    killed = []
    with ThreadPoolExecutor(len(names) + 1) as pool:
        storm = pool.submit(kill)
        for work in [pool.submit(train, name) for name in names]:
            work.result(timeout=120)
        storm.result()
    begun = Counter(node.begun())
    print(f"{len(killed)} killed, {len(begun)} tasks begun, {sum(done.values())} finished")
    assert len(killed) > 10
    assert set(begun.values()) == {1}, "no key is trained twice"
    host.stop()
    left = [said for said in processes(node.home).values() if b"agent-" not in said]
    assert left == []
    host.remove([blob.digest])
    assert [path for name in ("runs", "bundle", "blobs") for path in (node.home / name).iterdir()] == []
    node.close()


def fetch(host, key, blob, target):
    while True:
        try:
            host.fetch_update(key, blob, target)
        except ConnectionLost:
            continue
        return
