"""What holds a training: a real worker, with real Lightning, whose model reaches for what its owner did not give it."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from fedctl import bundle
from fedctl.durable import digest
from fedctl.federation import Federation, Node, TaskSpec
from fedctl.node.agent import Run, unpack
from fedctl.node.owner.confinement import confined, full, unable, used_by
from fedctl.node.owner.fence import Fence, around
from fedctl.node.owner.terms import Limits
from fedctl.records import Result, Task, TaskKey

MODEL = """
import os, socket, tempfile
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

class Net(pl.LightningModule):
    def __init__(self, reach="", port=0):
        super().__init__()
        self.reach, self.port = reach, port
        self.layer = torch.nn.Linear(4, 2)

    def training_step(self, batch, index):
        if self.reach == "out":
            socket.create_connection(("192.0.2.1", 80), timeout=5)
        if self.reach == "this machine":
            socket.create_connection(("127.0.0.1", self.port), timeout=5)
        if self.reach == "memory":
            self.kept = [torch.ones(2**26) for _ in range(20)]
        if self.reach == "disk":
            with tempfile.TemporaryFile() as file:
                file.truncate(2**31)
        if self.reach.startswith("read "):
            open(self.reach[5:]).close()
        if self.reach.startswith("write "):
            os.close(os.open(self.reach[6:], os.O_WRONLY))
        if self.reach.startswith("list "):
            os.listdir(self.reach[5:])
        if self.reach == "itself":
            ours, theirs = socket.socketpair()
            ours.sendall(b"x")
            with socket.create_server(("127.0.0.1", 0)) as server:
                socket.create_connection(server.getsockname()).close()
        self.log("cpus", float(len(os.sched_getaffinity(0))))
        self.log("gpus", float(torch.cuda.device_count()))
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(8, 4), torch.zeros(8).long()), batch_size=4, num_workers=1)
"""
LIMITS = Limits(cpus=1, memory=2 * 2**30, gpus=(), disk=2**30)
SOON_S = 90.0


@pytest.fixture(scope="module")
def network():
    """What this machine can do: where it cannot take the network away, that nothing starts is tested instead."""
    return "any" if unable(LIMITS, "none") else "none"


@pytest.fixture(scope="module")
def is_fenced():
    """Likewise for files."""
    return not unable(LIMITS, "any", "own")


class Site:
    """A node's home with a confined worker in it."""

    def __init__(self, home: Path, network: str, *, is_fenced: bool) -> None:
        (home / "project").mkdir(parents=True)
        (home / "project" / "model.py").write_text(MODEL)
        spec = TaskSpec(model="model.py:Net", data="model.py:Data")
        federation = Federation(name="x", folder=home / "project", task=spec, nodes=(Node(name="alice", host="local"),))
        content = bundle.pack(federation)
        code = hashlib.sha256(content).hexdigest()
        (home / "code.tar").write_bytes(content)
        (home / "bundle" / code).mkdir(parents=True)
        (home / "blobs").mkdir()
        unpack(home / "code.tar", home / "bundle" / code)
        self.home, self.run = home, Run.claim(home, "one", "aaaa")
        worker = {"python": sys.executable, "bundle": code, "slots": 1, "idle_s": 60, "cwd": str(self.run.path)}
        self.worker = {**worker, "preload": list(bundle.preload(federation))}
        self.network = network
        (home / "rows").mkdir()
        self.fence = around(sys.executable, home, [str(home / "rows")]) if is_fenced else None

    def begin(self) -> None:
        """Build the model that is trained."""
        first = self.do("r0000/coordinator/i1", models={})
        update = self.run.folder(str(first.key)) / "update.safetensors"
        self.base = digest(update)
        shutil.copy(update, self.home / "blobs" / self.base.digest)

    def do(self, key: str, *, models=None, **arguments) -> Result:
        """What comes of a task."""
        task = Task(
            key=TaskKey.parse(key),
            seed=1,
            model="model.py:Net",
            model_args=arguments,
            data="model.py:Data",
            data_args={},
            trainer={"max_epochs": 1, "accelerator": "auto"} if models is None else {},
            models={"base": self.base} if models is None else models,
        )
        self.run.start_worker(
            self.home, self.worker, lambda command: tuple(confined(command, LIMITS, self.network, self.fence))
        )
        self.run.accept(key, json.loads(json.dumps(task.to_json())))
        deadline = time.monotonic() + SOON_S
        while (result := self.run.result(key)) is None:
            assert time.monotonic() < deadline, (self.run.path / "worker.log").read_text()
            time.sleep(0.02)
        return Result.from_json(result)


@pytest.fixture(scope="module")
def site(tmp_path_factory, network, is_fenced):
    made = Site(tmp_path_factory.mktemp("home"), network, is_fenced=is_fenced)
    try:
        made.begin()
        yield made
    finally:
        made.run.stop()
        made.run.worker.wait()


def test_a_training_within_its_limits_goes_as_without_them(site):
    result = site.do("r0001/alice/a1", reach="itself")
    assert result.error is None, result.detail
    assert result.update
    assert (result.metrics["cpus"], result.metrics["gpus"]) == (1.0, 0.0)


def test_a_training_that_takes_too_much_memory_fails_and_says_so(site):
    result = site.do("r0002/alice/a1", reach="memory")
    assert "can't allocate memory" in result.error
    assert site.do("r0003/alice/a1").error is None, "the next one has its memory"


def test_a_training_that_writes_too_much_fails_and_says_so(site):
    result = site.do("r0004/alice/a1", reach="disk")
    assert result.error.endswith("OSError: [Errno 27] File too large")


def test_a_training_reaches_nobody(site, network):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        here = site.do("r0005/alice/a1", reach="this machine", port=port)
        if network == "any":
            assert here.error is None
            return
        out = site.do("r0006/alice/a1", reach="out")
        assert out.error.endswith("OSError: [Errno 101] Network is unreachable")
        assert here.error.endswith("ConnectionRefusedError: [Errno 111] Connection refused")
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_a_training_opens_what_is_its_own_alone(site, is_fenced):
    own = f"list {site.home / 'rows'}"
    assert site.do("r0007/alice/a1", reach=own).error is None
    with tempfile.NamedTemporaryFile(dir=Path.home()) as other:  # below /tmp everything is open
        not_own = [
            f"read {other.name}",
            f"write {other.name}",
            f"list {Path.home()}",
            f"read /proc/{os.getpid()}/environ",
        ]
        for number, reach in enumerate(not_own, 8):
            result = site.do(f"r{number:04d}/alice/a1", reach=reach)
            if is_fenced:
                assert "PermissionError: [Errno 13] Permission denied" in result.error, reach
            else:
                assert result.error is None


def test_nobody_climbs_over_the_fence(tmp_path, is_fenced):
    code = (
        "import os, signal, sys\n"
        "from fedctl.node.owner.fence import Fence\n"
        "Fence(['/'], ['/']).close()\n"
        f"open({str(tmp_path / 'inside')!r}, 'w').close()\n"
        f"os.link({str(tmp_path / 'inside')!r}, {str(tmp_path / 'in' / 'link')!r})\n"
        f"open({__file__!r})\n"
    )
    (tmp_path / "in").mkdir()
    root = str(Path(bundle.__file__).parents[1])
    fence = Fence(["/usr", "/lib", "/etc", root, sys.prefix, sys.base_prefix], [str(tmp_path)])
    code = code.replace(f"open({__file__!r})", f"open({str(tmp_path.parent / 'outside')!r})")
    (tmp_path.parent / "outside").touch()
    command = confined([sys.executable, "-c", code], Limits(), "any", fence)
    if not is_fenced:
        with pytest.raises(subprocess.SubprocessError):
            subprocess.run(command.command, preexec_fn=command.prepare, cwd=root)
        return
    done = subprocess.run(command.command, preexec_fn=command.prepare, cwd=root, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("PermissionError: [Errno 13] Permission denied")
    assert "outside" in done.stderr.splitlines()[-1]
    assert (tmp_path / "in" / "link").exists()


def test_nobody_goes_back_into_the_network(network):
    code = (
        "import ctypes, os, socket\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "for pid in ('1', str(os.getppid())):\n"
        "    try:\n"
        "        libc.setns(os.open(f'/proc/{pid}/ns/net', os.O_RDONLY), 0x40000000)\n"
        "    except OSError: pass\n"
        "print(os.getuid(), [name for _, name in socket.if_nameindex()])\n"
    )
    command = confined([sys.executable, "-c", code], Limits(), "none")
    if network == "any":
        with pytest.raises(subprocess.SubprocessError):
            subprocess.run(command.command, preexec_fn=command.prepare, check=True)
        return
    done = subprocess.run(command.command, preexec_fn=command.prepare, check=True, capture_output=True, text=True)
    user, interfaces = done.stdout.split(" ", 1)
    assert int(user) == os.getuid(), "it is still the same account"
    assert "'lo'" in interfaces
    mine = {name for _, name in socket.if_nameindex()}
    assert mine == {"lo"} or not mine & set(interfaces.strip("[]\n").replace("'", "").split(", ")) - {"lo"}


def test_what_a_machine_cannot_do_is_told(network):
    code = (
        "import ctypes, os\n"
        "from pathlib import Path\n"
        "from fedctl.node.owner.confinement import unable\n"
        "from fedctl.node.owner.terms import Limits\n"
        "user = os.geteuid()\n"
        "if ctypes.CDLL(None).unshare(0x10000000) == 0:\n"
        "    Path('/proc/self/uid_map').write_text(f'{user} {user} 1')\n"
        "    Path('/proc/sys/user/max_user_namespaces').write_text('0')\n"
        "print('\\n'.join(unable(Limits(cpus=1), 'none')))\n"
    )
    root = str(Path(bundle.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert "network: this machine does not let this account take the network from a process (" in done.stdout
    assert "ask its administrator to allow user namespaces, or say `network: any`" in done.stdout
    assert unable(LIMITS, "any") == []
    assert all(
        said.startswith("files: this machine cannot fence a process in") for said in unable(LIMITS, "any", "own")
    )


def test_a_policy_without_limits_changes_nothing():
    assert confined(["python3"], Limits(), "any") == (["python3"], {}, None)
    assert confined(["python3"], Limits(gpus=(1, 2)), "any").environment["CUDA_VISIBLE_DEVICES"] == "1,2"


def test_disk_is_counted_before_more_comes(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "blob").write_bytes(b"x" * 3 * 2**20)
    (tmp_path / "link").symlink_to("/")
    assert 3 * 2**20 <= used_by(tmp_path) < 4 * 2**20
    assert full(Limits(disk=2**28), used_by(tmp_path), 2**20) is None
    assert full(Limits(), used_by(tmp_path), 2**60) is None
    assert "allows 256M of disk, of which 3M are used" in full(Limits(disk=2**28), used_by(tmp_path), 2**28)
    assert used_by(tmp_path / "none") == 0
