"""A run over real servers and real processes on which a script of faults falls, and what came of it."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.bed import Bed, LoopbackBed
from tests.bed.processes import descendants, kill, marked, wait_until
from tests.bed.server import Server
from tests.chaos.script import COORDINATOR, NODES, TRAINING, Fault

RUN = "storm"
COMMAND = (sys.executable, "-m", "fedctl")
SILENCE = {"ServerAliveInterval": 1, "ServerAliveCountMax": 2, "ConnectTimeout": 2}
"""A line is dead after two seconds, so that a test need not wait for longer."""
SLOW = 64_000
"""Bytes a second; an update takes longer than a line may be silent."""
QUOTA = 8192
"""Bytes: the disk has room for a word, and not for an update."""
PATIENCE_S = 90.0

FED_YAML = """\
name: storm
seed: 7
rounds: {rounds}
task:
  model: model.py:Net
  data: data.py:Data
  trainer: {{max_epochs: 1}}
  monitor: {{metric: val_loss, mode: min}}
strategy: {{name: fedavgm, lr: 0.5}}
schedule: {schedule}
nodes:
"""
NODE = "  - {{name: {name}, host: {host}, python: {python}, accelerator: cpu, threads: 1, data: {{site: {site}}}}}\n"
MODEL = """\
import os
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.ballast = nn.Parameter(torch.randn(40_000))

    def on_train_start(self):
        with (Path(os.environ["FEDCTL_HOME"]).parent / "begun").open("a") as file:
            file.write("begun\\n")
        time.sleep(0.2)  # room for a blow

    def training_step(self, batch, batch_idx):
        features, targets = batch
        return functional.mse_loss(self.layer(features).squeeze(dim=1), targets) + self.ballast.square().mean()

    def validation_step(self, batch, batch_idx):
        features, targets = batch
        self.log("val_loss", functional.mse_loss(self.layer(features).squeeze(dim=1), targets))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)
"""
DATA = """\
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


class Data(pl.LightningDataModule):
    def __init__(self, site):
        super().__init__()
        rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(site)) + site % 3
        self.rows = TensorDataset(rows, rows @ torch.tensor([2.0, -1.0, 0.5, 0.0]) + 1)

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=16, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.rows, batch_size=64)
"""


@dataclass(frozen=True, slots=True)
class Blow:
    """A fault that fell, and how long until the one it met had done its next piece of work."""

    fault: Fault
    seconds: float


class Place:
    """A federation's folder, from which `fedctl` is run; its nodes are on the bed, or on this machine without one."""

    def __init__(
        self,
        folder: Path,
        rounds: int,
        bed: Bed | None = None,
        *,
        nodes: Sequence[str] = NODES,
        schedule: str = "{quorum: 1.0, attempts: 3}",
    ) -> None:
        self.folder, self.bed = folder / "federation", bed
        self.home = folder / "here" / ".fedctl"
        self.folder.mkdir(parents=True)
        self.home.parent.mkdir()
        (self.folder / "model.py").write_text(MODEL)
        (self.folder / "data.py").write_text(DATA)
        text = FED_YAML.format(rounds=rounds, schedule=schedule)
        for site, name in enumerate(nodes):
            host = name if bed else "local"
            text += NODE.format(name=name, host=host, python=sys.executable if bed else "null", site=site)
        (self.folder / "fed.yaml").write_text(text)
        self.run = self.folder / "runs" / RUN
        self._seen: list[dict[str, Any]] = []
        self._read = 0

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a command; what it says is added to `said`."""
        with (self.folder.parent / "said").open("ab") as said:
            return subprocess.Popen(
                [*COMMAND, *arguments],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    def fedctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    @property
    def said(self) -> str:
        return (self.folder.parent / "said").read_text(errors="replace")

    def events(self) -> list[dict[str, Any]]:
        """The whole lines of the journal so far."""
        journal = self.run / "events.jsonl"
        if journal.exists():
            with journal.open("rb") as file:
                file.seek(self._read)
                for line in file.read().splitlines(keepends=True):
                    if line.endswith(b"\n"):
                        self._seen.append(json.loads(line))
                        self._read += len(line)
        return self._seen

    def processes(self) -> list[int]:
        """What commands of this place started on this machine, and is alive."""
        return marked(f"FEDCTL_HOME={self.home}")

    def close(self) -> None:
        kill(self.processes())

    def _environment(self) -> dict[str, str]:
        around = self.bed.environment if self.bed else os.environ
        return {**around, "FEDCTL_HOME": str(self.home), "COLUMNS": "100", "NO_COLOR": "1"}


class Storm:
    """A run of that script; `go` sees it through."""

    def __init__(self, place: Place, bed: LoopbackBed, script: Sequence[Fault]) -> None:
        self.place, self.bed, self.script = place, bed, script
        self.blows: list[Blow] = []
        self.exits: list[int] = []
        """Of coordinators that ended by themselves."""
        self.statuses: list[dict[str, Any]] = []
        """What `status --json` said after each kill."""
        self.coordinator = place.start("launch", "--run", RUN)

    def go(self) -> None:
        """Until the run is over; raises TimeoutError where it stands still."""
        for fault in self.script:
            self._await(fault)
            since, began = len(self.place.events()), time.monotonic()
            self._strike(fault)
            self._wait(partial(self._is_recovered, fault, since), f"{fault}: no recovery")
            self.blows.append(Blow(fault, time.monotonic() - began - fault.seconds))
        self.exits.append(self.coordinator.wait(PATIENCE_S))

    def close(self) -> None:
        self.coordinator.kill()
        self.coordinator.wait()
        self.place.close()

    # When

    def _await(self, fault: Fault) -> None:
        self._wait(partial(self._has_come, fault), f"{fault}: its moment does not come")
        time.sleep(fault.when.delay_s)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        """Until it is so, or the coordinator has ended; says with what it has said where neither comes."""
        try:
            wait_until(lambda: self._is_over() or condition(), what, PATIENCE_S)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.place.said[-2000:]}") from None

    def _has_come(self, fault: Fault) -> bool:
        when, events = fault.when, self.place.events()
        opened = (i for i, e in enumerate(events) if e["event"] == "RoundOpened" and e["round"] == when.round)
        first = next(opened, None) if when.round else 0
        if first is None:
            return False
        if when.event == TRAINING:
            return self._task_process(fault) is not None
        about = None if fault.who == COORDINATOR else fault.who
        return any(_is_about(e, about) for e in events[first:] if e["event"] == when.event)

    def _is_recovered(self, fault: Fault, since: int) -> bool:
        for event in self.place.events()[since:]:
            if fault.who == COORDINATOR:
                if event["event"] != "RunStarted":
                    return True
            elif event["event"] == "RunFinished" or (
                event["event"] == "UpdateReceived" and _is_about(event, fault.who)
            ):
                return True
        return False

    def _is_over(self) -> bool:
        return self.coordinator.poll() is not None

    # What

    def _strike(self, fault: Fault) -> None:
        if fault.who == COORDINATOR:
            self._strike_the_coordinator(fault)
        else:
            STRIKES[fault.what](self, self.bed.nodes[fault.who], fault)

    def _strike_the_coordinator(self, fault: Fault) -> None:
        if fault.what == "freeze":
            with frozen([self.coordinator.pid]):
                time.sleep(fault.seconds)
            return
        self.coordinator.kill()
        if self.coordinator.wait() != -signal.SIGKILL:
            self.exits.append(self.coordinator.returncode)
        if fault.what == "kill and tear":
            with (self.place.run / "events.jsonl").open("ab") as journal:
                journal.write(b'{"at":"2026-11-22T03:35:0')
        asked = self.place.fedctl("status", RUN, "--json")
        assert asked.returncode == 0, asked.stderr
        self.statuses.append(json.loads(asked.stdout))
        self.coordinator = self.place.start("launch", "--resume", RUN)

    def _task_process(self, fault: Fault) -> int | None:
        """The process that took up the node's training of that round, in its newest attempt."""
        found = sorted(self._run_on(fault.who).glob(f"r{fault.when.round:04}-{fault.who}-a*/pid"))
        with suppress(OSError, ValueError, IndexError):
            return int(found[-1].read_text())
        return None

    def _run_on(self, node: str) -> Path:
        return self.bed.nodes[node].fedctl_home / "runs" / RUN

    def _workers(self, server: Server) -> list[int]:
        """The worker of a node, and what it started."""
        with suppress(OSError, ValueError):
            worker = int((self._run_on(server.name) / "worker.pid").read_text())
            return [worker, *descendants(worker)]
        return []

    def _kill_the_agent(self, server: Server, fault: Fault) -> None:
        kill(pid for pid in server.started() if b"agent-" in _command(pid) and pid not in self._workers(server))

    def _kill_the_child(self, server: Server, fault: Fault) -> None:
        pid = self._task_process(fault)
        kill(child for child in self._workers(server)[1:] if pid in (child, None))

    def _kill_the_worker(self, server: Server, fault: Fault) -> None:
        kill(self._workers(server)[:1])

    def _freeze_the_child(self, server: Server, fault: Fault) -> None:
        with frozen(self._workers(server)[1:]):
            time.sleep(fault.seconds)

    def _freeze_the_worker(self, server: Server, fault: Fault) -> None:
        with frozen(self._workers(server)):
            time.sleep(fault.seconds)

    def _stop_the_server(self, server: Server, fault: Fault) -> None:
        server.stop_server()
        time.sleep(fault.seconds)
        server.start()

    def _reset_the_line(self, server: Server, fault: Fault) -> None:
        self.bed.relay(server).reset()

    def _cut_the_line(self, server: Server, fault: Fault) -> None:
        self.bed.cut(server)
        time.sleep(fault.seconds)
        self.bed.heal(server)

    def _slow_the_line(self, server: Server, fault: Fault) -> None:
        self.bed.slow(server, SLOW)
        time.sleep(fault.seconds)
        self.bed.slow(server, 0)

    def _fill_the_disk(self, server: Server, fault: Fault) -> None:
        """What a quota does, until the node has felt it."""
        since = len(self.place.events())

        def is_felt() -> bool:
            _limit_files(self._workers(server), QUOTA)
            failed = (e for e in self.place.events()[since:] if e["event"] in ("TaskFailed", "RoundAggregated"))
            return any(e["event"] == "RoundAggregated" or _is_about(e, server.name) for e in failed)

        self._wait(is_felt, f"{fault}: nobody notices")
        _limit_files(self._workers(server), resource.RLIM_INFINITY)


Strike = Callable[[Storm, Server, Fault], None]
STRIKES: Mapping[str, Strike] = {
    "kill the agent": Storm._kill_the_agent,
    "kill the sessions": lambda storm, server, fault: server.drop_sessions(),
    "kill the child": Storm._kill_the_child,
    "kill the worker": Storm._kill_the_worker,
    "reboot": lambda storm, server, fault: server.reboot(),
    "fill the disk": Storm._fill_the_disk,
    "freeze the child": Storm._freeze_the_child,
    "freeze the worker": Storm._freeze_the_worker,
    "stop the server": Storm._stop_the_server,
    "reset the line": Storm._reset_the_line,
    "cut the line": Storm._cut_the_line,
    "cut the line shortly": Storm._cut_the_line,
    "slow the line": Storm._slow_the_line,
}


@contextmanager
def frozen(pids: Sequence[int]) -> Iterator[None]:
    """Those processes stand still meanwhile."""
    kill(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        kill(pids, signal.SIGCONT)


@contextmanager
def open_bed(folder: Path, *, relayed: bool = True) -> Iterator[LoopbackBed]:
    """Nodes that are found dead soon; with relays their lines can be broken in every way."""
    with LoopbackBed(folder / "bed", relayed=relayed) as bed:
        for server in bed.add_all(NODES):
            bed.alias(server.name, server, **SILENCE)
        yield bed


def calm(folder: Path, rounds: int) -> Place:
    """The same run on this machine, on which nothing falls."""
    place = Place(folder, rounds)
    done = place.start("launch", "--run", RUN).wait(PATIENCE_S * 2)
    assert done == 0, place.said
    return place


def _is_about(event: Mapping[str, Any], node: str | None) -> bool:
    """Whether an event is of that node, or of no one; None is any."""
    name = event["task"].split("/")[1] if "task" in event else event.get("node")
    return node is None or name in (node, None)


def _command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _limit_files(pids: Sequence[int], size: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, most))
