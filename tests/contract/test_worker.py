"""Real agents and real workers: what happens to tasks and processes, whoever dies.

Most tests put a trainer of a few lines in the place of Lightning's, so that a worker is there at once; the last ones
train for real.
"""

import hashlib
import io
import json
import os
import queue
import signal
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedctl import bundle
from fedctl.connection import Connection
from fedctl.errors import NodeError
from fedctl.federation import Federation, Node, TaskSpec
from fedctl.records import Blob, Progress, Result, Task, TaskKey
from fedctl.transfer import put
from fedctl.transports.local import LocalTransport

STAND_IN = """
import os, time
from fedctl.errors import Declined
from fedctl.records import Progress, Result

def perform(task, models, folder, report, threads):
    do = task.data_args
    with (folder.parent / "begun").open("a") as file:
        file.write(f"{task.key} {os.getpid()}\\n")
    print("this is", task.key)
    if do.get("fork") and os.fork() == 0:
        time.sleep(120)
        os._exit(0)
    if os.path.exists(do.get("owner", "")):
        raise Declined("somebody is at the keyboard", seconds=5.0)
    if "leave" in do:
        os._exit(do["leave"])
    deadline = time.monotonic() + do.get("seconds", 0)
    while time.monotonic() < deadline and not (folder.parent / "enough").exists():
        report(Progress(key=task.key, phase="training", step=1, steps=2))
        time.sleep(0.02)
    return Result(key=task.key, examples=7)
"""
NOISY = "import threading, time\nthreading.Thread(target=time.sleep, args=(300,), daemon=True).start()\n"
MODEL = """
import pytorch_lightning as pl
import torch

class Net(pl.LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.lr = lr
        self.layer = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 2))

    def loss(self, batch):
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def training_step(self, batch, index):
        loss = self.loss(batch)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)
"""
DATA = """
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

class Data(pl.LightningDataModule):
    def __init__(self, site):
        super().__init__()
        if site < 0:
            raise ValueError("there is no such site")
        rows = torch.randn(40, 4, generator=torch.Generator().manual_seed(site))
        self.rows = TensorDataset(rows, (rows.sum(1) > 0).long())

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.rows, batch_size=8)
"""
SOON_S = 40.0


class Machine:
    """A node's home, and one line to its agent after another."""

    def __init__(self, home, content, **worker):
        self.home = home
        self.run = {"run": "one", "identity": "aaaa"}
        self.folder = home / "runs/one"
        self.content = content
        self.digest = hashlib.sha256(content).hexdigest()
        spec = {"python": sys.executable, "bundle": self.digest, "preload": [], "slots": 1, "idle_s": 60, "cwd": "/"}
        self.worker = {**spec, **worker}
        self.pushes = {}
        self.lines = []
        self.line = self.connect()
        (home / "bundle.tar").write_bytes(content)
        put(self.line, Blob(digest=self.digest, size=len(content)), home / "bundle.tar")
        self.line.ask("unpack", digest=self.digest)

    def connect(self):
        self.lines.append(Connection.open(LocalTransport(home=str(self.home)), sys.executable))
        return self.lines[-1]

    def start(self, key, line=None, *, task=None, **do):
        """Ask for a task; what is pushed of it is kept."""
        line = line or self.line
        self.pushes[key] = queue.SimpleQueue()
        line.listen(key, self.pushes[key].put)
        made = Task(key=TaskKey.parse(key), seed=1, model="", model_args={}, data="", data_args=do, trainer={})
        return line.ask("start", **self.run, key=key, task=task or made.to_json(), worker=self.worker)

    def result(self, key):
        """The pushed result; progress that comes before it is checked and passed over."""
        deadline = time.monotonic() + SOON_S
        while True:
            push = self.pushes[key].get(timeout=deadline - time.monotonic())
            if push["push"] == "result":
                return Result.from_json(push["result"])
            assert str(Progress.from_json(push["progress"]).key) == key

    def progress(self, key):
        """Wait until the task works, and give its phase."""
        return Progress.from_json(self.pushes[key].get(timeout=SOON_S)["progress"]).phase

    def begun(self):
        """The keys of the tasks that were begun, in order, and the processes that did them."""
        path = self.folder / "begun"
        return [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []

    def pid(self, key=None):
        """The worker, or the process of a task."""
        place = self.folder / key.replace("/", "-") / "pid" if key else self.folder / "worker.pid"
        until(place.exists)
        return int(place.read_text())

    def ask(self, op, **fields):
        return self.line.ask(op, **self.run, **fields)

    def close(self):
        if self.folder.exists():
            self.connect().ask("stop", **self.run)
        for line in self.lines:
            line.close()
        until(lambda: not processes(self.home))


def processes(home):
    """The processes that have this home in their command line or environment."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            said = (place / "cmdline").read_bytes()
            if os.fsencode(home) in said + (place / "environ").read_bytes() and int(place.name) != os.getpid():
                found[int(place.name)] = said
        except OSError:
            continue
    return found


def until(condition):
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def packed(folder, **instead):
    """The bundle of a project, with some of its files exchanged."""
    spec = TaskSpec(model="model.py:Net", data="data.py:Data")
    federation = Federation(name="x", folder=folder, task=spec, nodes=(Node(name="a"),))
    buffer = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(bundle.pack(federation))) as old,
        tarfile.open(fileobj=buffer, mode="w") as new,
    ):
        for member in old:
            content = instead.get(Path(member.name).stem, "").encode() or old.extractfile(member).read()
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    folder = tmp_path_factory.mktemp("light")
    (folder / "noisy.py").write_text(NOISY)
    return packed(folder, lightning=STAND_IN)


@pytest.fixture
def machine(tmp_path, light):
    machine = Machine(tmp_path / "home", light)
    yield machine
    machine.close()


@pytest.fixture(params=[[], ["noisy"]], ids=["forked", "fresh"])
def either(request, tmp_path, light):
    """A machine whose worker forks, and one whose worker may not."""
    machine = Machine(tmp_path / "home", light, preload=request.param)
    yield machine
    machine.close()


def test_a_task_goes_from_start_to_result_and_its_process_stays_warm(either):
    assert either.start("r0001/a/a1", seconds=0.1)["state"] == "started"
    assert either.progress("r0001/a/a1") == "training"
    result = either.result("r0001/a/a1")
    assert (result.examples, result.error) == (7, None)
    either.start("r0002/a/a1")
    either.result("r0002/a/a1")
    assert len({pid for _, pid in either.begun()}) == 1
    answer, log = either.line.begin("read", **either.run, key="r0002/a/a1", name="train.log", offset=0, limit=99)()
    assert (answer["size"], log) == (19, b"this is r0002/a/a1\n")
    assert either.ask("list")["tasks"] == {"r0001-a-a1": "done", "r0002-a-a1": "done"}


def test_a_key_that_is_started_twice_is_trained_once(machine):
    second = machine.connect()
    assert machine.start("r0001/a/a1", seconds=0.3)["state"] == "started"
    assert machine.start("r0001/a/a1", second, seconds=0.3)["state"] == "adopted"
    machine.result("r0001/a/a1")
    assert machine.start("r0001/a/a1", second)["state"] == "done"
    assert len(machine.begun()) == 1


def test_a_task_outlives_its_agent_and_is_adopted_by_the_next(machine):
    machine.start("r0001/a/a1", seconds=60)
    machine.progress("r0001/a/a1")
    machine.line.close()
    machine.line = machine.connect()
    assert machine.start("r0001/a/a1", seconds=60)["state"] == "adopted"
    (machine.folder / "enough").touch()
    assert machine.result("r0001/a/a1").error is None
    assert len(machine.begun()) == 1


def test_as_many_tasks_as_slots_are_done_at_once_in_the_order_in_which_they_came(tmp_path, light):
    machine = Machine(tmp_path / "home", light, slots=2)
    keys = [f"r0001/n{number}/a1" for number in (5, 3, 4, 1, 2)]
    for key in keys:
        machine.start(key, seconds=60)
    until(lambda: len(machine.begun()) == 2)
    states = machine.ask("list")["tasks"]
    assert sorted(states.values()) == ["running", "running", "waiting", "waiting", "waiting"]
    (machine.folder / "enough").touch()
    for key in keys:
        machine.result(key)
    assert {key for key, _ in machine.begun()[:2]} == set(keys[:2])
    assert len(machine.begun()) == 5
    machine.close()


def test_a_process_that_is_killed_is_a_failure_that_names_the_signal(either):
    either.start("r0001/a/a1", seconds=60, fork=True)
    either.progress("r0001/a/a1")
    os.kill(either.pid("r0001/a/a1"), signal.SIGKILL)
    result = either.result("r0001/a/a1")
    assert result.error == "the process was killed by SIGKILL (out of memory, or by hand)"
    assert result.retryable
    assert "this is r0001/a/a1" in result.detail
    either.start("r0001/a/a2")
    assert either.result("r0001/a/a2").error is None, "and the next attempt finds another process"


@pytest.mark.parametrize(("do", "why"), [({"leave": 3}, "ended with status 3"), ({"leave": 0}, "ended with status 0")])
def test_code_that_ends_its_process_is_a_failure(either, do, why):
    either.start("r0001/a/a1", **do)
    assert either.result("r0001/a/a1").error == f"the process {why}"


def test_when_the_worker_is_killed_what_runs_is_finished_and_what_waits_is_done_by_another(machine):
    keys = [f"r0001/n{number}/a1" for number in range(3)]
    for key in keys:
        machine.start(key, seconds=60 if key == keys[0] else 0)
    machine.progress(keys[0])
    os.kill(machine.pid(), signal.SIGKILL)
    for key in keys[1:]:
        assert machine.result(key).error is None
    (machine.folder / "enough").touch()
    assert machine.result(keys[0]).error is None
    assert sorted(key for key, _ in machine.begun()) == keys


def test_when_the_worker_and_its_process_are_killed_the_task_is_lost_and_is_not_begun_again(machine):
    machine.start("r0001/a/a1", seconds=60)
    machine.progress("r0001/a/a1")
    child, worker = machine.pid("r0001/a/a1"), machine.pid()
    os.kill(worker, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    result = machine.result("r0001/a/a1")
    assert result.error == "the process that worked on the task is gone"
    assert result.retryable
    assert len(machine.begun()) == 1


def test_a_waiting_and_a_running_task_can_be_cancelled(either):
    either.start("r0001/a/a1", seconds=60, fork=True)
    either.start("r0001/b/a1")
    either.progress("r0001/a/a1")
    either.ask("cancel", key="r0001/b/a1")
    either.ask("cancel", key="r0001/a/a1")
    for key in ("r0001/a/a1", "r0001/b/a1"):
        result = either.result(key)
        assert (result.error, result.retryable) == ("cancelled", False)
    either.start("r0001/c/a1")
    assert either.result("r0001/c/a1").error is None
    assert [key for key, _ in either.begun()] == ["r0001/a/a1", "r0001/c/a1"]
    assert either.start("r0001/a/a1")["state"] == "done"


def test_stopping_leaves_no_process(tmp_path, light):
    machine = Machine(tmp_path / "home", light, slots=2)
    machine.start("r0001/a/a1", seconds=5, fork=True)
    machine.start("r0001/b/a1")
    machine.start("r0001/c/a1", seconds=60)
    machine.progress("r0001/a/a1")
    machine.result("r0001/b/a1")
    machine.progress("r0001/c/a1")
    machine.start("r0001/d/a1")
    assert len(processes(machine.home)) >= 4
    machine.ask("stop")
    left = [said for said in processes(machine.home).values() if b"agent-" not in said]
    assert left == []
    time.sleep(1.2)
    assert not [said for said in processes(machine.home).values() if b"agent-" not in said], "nothing was revived"
    machine.line.close()
    machine.line = machine.connect()
    assert machine.start("r0001/d/a1")["state"] == "adopted"
    assert machine.start("r0001/a/a1")["state"] == "adopted"
    assert machine.result("r0001/d/a1").error is None, "what had not been begun is done when it is asked for again"
    assert machine.result("r0001/a/a1").error is None, "what was stopped on purpose is begun again"
    machine.close()


def test_removing_leaves_no_process_and_no_file_of_the_run(machine):
    blob = Blob(digest=hashlib.sha256(b"model").hexdigest(), size=5)
    (machine.home / "model").write_bytes(b"model")
    put(machine.line, blob, machine.home / "model")
    task = Task(
        key=TaskKey.parse("r0001/a/a1"),
        seed=1,
        model="",
        model_args={},
        data="",
        data_args={"seconds": 60, "fork": True},
        trainer={},
        models={"base": blob},
    )
    machine.start("r0001/a/a1", task=task.to_json())
    machine.progress("r0001/a/a1")
    machine.ask("remove", digests=[blob.digest])
    assert not [said for said in processes(machine.home).values() if b"agent-" not in said]
    for name in ("runs", "blobs", "bundle"):
        assert list((machine.home / name).iterdir()) == []


def test_a_worker_leaves_when_it_has_been_idle_and_another_comes_for_the_next_task(tmp_path, light):
    machine = Machine(tmp_path / "home", light, idle_s=0.2)
    machine.start("r0001/a/a1", seconds=1.5)
    machine.result("r0001/a/a1")
    until(lambda: not [said for said in processes(machine.home).values() if b"agent-" not in said])
    assert list(machine.ask("list")) == ["re", "tasks", "worker"]
    until(lambda: not machine.ask("list")["worker"])
    machine.start("r0002/a/a1")
    assert machine.result("r0002/a/a1").error is None
    machine.close()


def test_what_an_owner_does_not_want_begun_leaves_nothing_there(machine):
    when = {"hours": [], "days": [], "command": ["/bin/false"]}
    made = Task(
        key=TaskKey.parse("r0001/a/a1"), seed=1, model="", model_args={}, data="", data_args={}, trainer={}, when=when
    )
    answer = machine.start("r0001/a/a1", task=made.to_json())
    assert answer["declined"] == {"may": False, "why": "/bin/false ended with status 1", "seconds": 0.0}
    assert not (machine.folder / "r0001-a-a1").exists()
    assert machine.ask("may", when={**when, "command": ["/bin/true"]})["may"]


def test_a_finished_task_is_answered_at_any_time(machine):
    machine.start("r0001/a/a1")
    assert machine.result("r0001/a/a1").examples == 7
    when = {"hours": [], "days": [], "command": ["/bin/false"]}
    made = Task(
        key=TaskKey.parse("r0001/a/a1"), seed=1, model="", model_args={}, data="", data_args={}, trainer={}, when=when
    )
    assert machine.start("r0001/a/a1", task=made.to_json())["state"] == "done"


def test_a_task_that_its_owner_stopped_is_begun_anew_under_its_key(either, tmp_path):
    (tmp_path / "owner").touch()
    either.start("r0001/a/a1", owner=str(tmp_path / "owner"))
    stopped = either.result("r0001/a/a1")
    assert (stopped.error, stopped.ask_again_s) == ("somebody is at the keyboard", 5.0)
    (tmp_path / "owner").unlink()
    assert either.start("r0001/a/a1", owner=str(tmp_path / "owner"))["state"] == "started"
    assert either.result("r0001/a/a1").examples == 7
    assert [key for key, _ in either.begun()] == ["r0001/a/a1"] * 2


def test_two_workers_never_serve_one_run(machine):
    lines = [machine.line, *(machine.connect() for _ in range(3))]
    with ThreadPoolExecutor(4) as pool:
        asked = pool.map(lambda line: line.ask("worker", **machine.run, worker=machine.worker), lines * 5)
        assert sum(answer["started"] for answer in asked) == 1
    machine.start("r0001/a/a1", seconds=0.1)
    machine.result("r0001/a/a1")
    assert sum(b"worker import main" in said for said in processes(machine.home).values()) <= 2, "it and its fork"
    machine.start("r0001/b/a1")
    machine.result("r0001/b/a1")
    assert len(machine.begun()) == 2
    assert len({pid for _, pid in machine.begun()}) == 1


def test_a_task_that_cannot_be_read_is_a_failure_and_the_worker_lives_on(machine):
    machine.start("r0001/a/a1", task={"models": {}, "key": "r0001/a/a1"})
    assert machine.result("r0001/a/a1").error.startswith("ValueError: expected an object")
    machine.start("r0001/b/a1")
    assert machine.result("r0001/b/a1").error is None


def test_what_does_not_belong_into_the_queue_holds_nothing_up(machine):
    machine.ask("list")
    for name in ("garbage", "1-../x", "2-r0001-nobody-a1", "-"):
        if "/" not in name:
            (machine.folder / "queue" / name).touch()
    machine.start("r0001/a/a1")
    assert machine.result("r0001/a/a1").error is None
    assert not list((machine.folder / "queue").iterdir())


def test_a_python_that_cannot_be_run_is_refused_by_name(machine):
    machine.worker["python"] = "/no/python"
    with pytest.raises(NodeError, match="/no/python"):
        machine.start("r0001/a/a1")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    for name, text in {"model.py": MODEL, "data.py": DATA, "noisy.py": NOISY}.items():
        (folder / name).write_text(text)
    return packed(folder)


@pytest.fixture(scope="module")
def warm(tmp_path_factory, project):
    """A machine that has torch and Lightning, and the first model."""
    machine = Machine(tmp_path_factory.mktemp("warm") / "home", project, preload=["torch", "pytorch_lightning"])
    machine.start("r0000/coordinator/i1", task=real("r0000/coordinator/i1", data_args={"a": {"site": 3}}, trainer={}))
    machine.model = machine.result("r0000/coordinator/i1").update
    yield machine
    machine.close()


def real(key, **fields):
    common = {
        "seed": 11,
        "model": "model.py:Net",
        "model_args": {"lr": 0.1},
        "data": "data.py:Data",
        "data_args": {"site": 3},
        "trainer": {"max_epochs": 3, "accelerator": "cpu", "devices": 1},
        "threads": 1,
    }
    return Task(key=TaskKey.parse(key), **{**common, **fields}).to_json()


def give(machine, blob, source):
    put(machine.line, blob, source)
    return {"base": blob}


def test_a_real_training_is_the_same_to_the_bit_in_a_forked_and_in_a_fresh_process(warm, project, tmp_path):
    source = warm.folder / "r0000-coordinator-i1/update.safetensors"
    cold = Machine(tmp_path / "home", project, preload=["noisy"])
    updates = []
    for machine in (warm, cold):
        machine.start("r0001/a/a1", task=real("r0001/a/a1", models=give(machine, warm.model, source)))
    for machine in (warm, cold):
        result = machine.result("r0001/a/a1")
        assert result.error is None, result.detail
        assert (result.examples, result.accelerator) == (40, "cpu")
        assert {"train_loss"} <= set(result.metrics)
        assert result.seconds > 0
        updates.append((machine.folder / "r0001-a-a1/update.safetensors").read_bytes())
    cold.close()
    assert b"child_main" not in b"".join(processes(warm.home).values())
    assert hashlib.sha256(updates[0]).hexdigest() == result.update.digest
    assert updates[0] == updates[1]
    assert updates[0] != source.read_bytes()


def test_a_warm_process_gives_the_same_bits_again(warm):
    models = give(warm, warm.model, warm.folder / "r0000-coordinator-i1/update.safetensors")
    digests = set()
    for key in ("r0002/a/a1", "r0002/a/a2"):
        warm.start(key, task=real(key, models=models))
        digests.add(warm.result(key).update.digest)
    assert len(digests) == 1


def test_a_model_is_scored_on_the_nodes_own_data(warm):
    models = give(warm, warm.model, warm.folder / "r0000-coordinator-i1/update.safetensors")
    warm.start("r0001/a/e1", task=real("r0001/a/e1", models={"global": models["base"]}))
    result = warm.result("r0001/a/e1")
    assert result.scores["global"].examples == 40
    assert set(result.scores["global"].metrics) == {"val_loss"}


def test_an_error_in_the_users_code_is_told_with_its_line(warm):
    models = give(warm, warm.model, warm.folder / "r0000-coordinator-i1/update.safetensors")
    warm.start("r0003/a/a1", task=real("r0003/a/a1", models=models, data_args={"site": -1}))
    result = warm.result("r0003/a/a1")
    assert result.error == "data.py:10: ValueError: there is no such site"
    assert not result.retryable
    assert json.loads((warm.folder / "r0003-a-a1/result.json").read_text())["error"] == result.error
