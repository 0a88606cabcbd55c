"""The worker: a detached process on a node that imports torch and Lightning once and forks a pool of warm children.

It takes tasks from its run's queue in the order in which they came and hands each to an idle child, at most `slots` at
once. It survives the agent and the coordinator, and leaves when it has been idle too long or is killed. Where forking
would not be safe (another platform, threads in the parent) its children are fresh interpreters instead.
"""

import contextlib
import fcntl
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fedctl.node.agent import FOLDER, Run, cpus, key_of, kill_group, remove, tail

LOOK_S = 1.0
"""How long a nudge may be missed before the worker looks at its queue by itself."""


@dataclass(slots=True)
class Child:
    """One warm process; `folder` is the task that it works on, or None."""

    pid: int
    line: socket.socket
    folder: str | None = None


def main(path: str, lock: int) -> None:
    """Serve the run in that folder until idle for too long; `lock` is the descriptor that says who serves it."""
    os.set_inheritable(lock, False)
    folder = Path(path)
    spec = json.loads((folder / "worker.json").read_text())
    pool = Pool(folder, spec, lock)
    # Every Trainer asks for the entry points of all installed packages, which do not change while a worker lives.
    metadata.entry_points = functools.lru_cache(metadata.entry_points)  # type: ignore[assignment]
    # OpenBLAS starts its threads as NumPy is imported, and a process with threads cannot be forked safely.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for module in spec["preload"]:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what was imported stays: the children need not look through it, nor copy its pages for that
    pool.serve()


class Pool:
    """The queue's consumers."""

    def __init__(self, folder: Path, spec: Mapping[str, Any], lock: int) -> None:
        self.run = Run(folder)
        self.lock = lock
        self.folder = folder
        self.slots = spec["slots"] or cpus()
        self.idle_s = float(spec["idle_s"])
        self.children: dict[int, Child] = {}
        self.deaths: dict[str, str] = {}
        """Tasks whose process died and that have no result yet, with the reason."""
        self.nudges = _fifo(folder / "wake")
        self.oom_kills = oom_kills()
        """As of the last look, so that a death can be told from the ones before."""

    def serve(self) -> None:
        """Dispatch until nothing has happened for `idle_s`."""
        active_at = time.monotonic()
        while True:
            self._dispatch()
            self._report_deaths()
            self.oom_kills = oom_kills()
            if self.deaths or any(child.folder for child in self.children.values()):
                active_at = time.monotonic()
            elif time.monotonic() - active_at > self.idle_s:
                break
            self._wait()
        for child in self.children.values():
            child.line.close()

    def _dispatch(self) -> None:
        """Hand out what waits. The child takes a task out of the queue, so that none is lost with a worker."""
        taken = {child.folder for child in self.children.values()} | self.deaths.keys()
        for entry in sorted((self.folder / "queue").iterdir()):
            folder = entry.name.partition("-")[2]
            if not FOLDER.match(folder) or not (self.folder / folder).is_dir():
                remove(entry)
            elif folder not in taken:
                child = self._idle_child()
                if child is None:
                    return
                taken.add(folder)
                child.folder = folder
                try:
                    child.line.sendall(folder.encode() + b"\n")
                except OSError:
                    self._bury(child)

    def _idle_child(self) -> Child | None:
        for child in self.children.values():
            if child.folder is None:
                return child
        if len(self.children) >= self.slots:
            return None
        inherited = [self.lock, self.nudges, *self.children]
        child = _start_child(self.folder, self.slots, inherited)
        self.children[child.line.fileno()] = child
        return child

    def _wait(self) -> None:
        ready, _, _ = select.select([self.nudges, *self.children], [], [], LOOK_S)
        for descriptor in ready:
            if descriptor == self.nudges:
                os.read(self.nudges, 4096)
                continue
            child = self.children[descriptor]
            try:
                answered = child.line.recv(1)
            except OSError:
                answered = b""
            if answered:
                child.folder = None
            else:
                self._bury(child)
        for child in list(self.children.values()):
            # What a child forked keeps its end of the line open, so the line does not always tell.
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                self._bury(child, status)

    def _bury(self, child: Child, status: int | None = None) -> None:
        """A child died: the task that it held has failed."""
        del self.children[child.line.fileno()]
        child.line.close()
        kill_group(child.pid)  # what it forked shares its lock too
        if status is None:
            _, status = os.waitpid(child.pid, 0)
        if child.folder is None:
            return
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            name = next((known.name for known in signal.Signals if known == number), f"signal {number}")
            why = f"was killed by {name}"
            if number == signal.SIGKILL:
                is_sure = oom_kills() > self.oom_kills
                why = "was killed by the kernel: out of memory" if is_sure else why + " (out of memory, or by hand)"
        else:
            why = f"ended with status {os.WEXITSTATUS(status)}"
        self.deaths[child.folder] = f"the process {why}"

    def _report_deaths(self) -> None:
        for folder, why in list(self.deaths.items()):
            path = self.folder / folder
            try:
                if self.run.fail(key_of(folder), why, retryable=True) or (path / "result.json").exists():
                    del self.deaths[folder]
            except OSError:  # a full disk: the agent sees that nobody holds the task, and tells it over its line
                self.run.unqueue(key_of(folder))
                del self.deaths[folder]


def child_main(folder: str, slots: int, descriptor: int) -> None:
    """Do the tasks whose folders arrive on the socket, until it closes."""
    from fedctl.node.task import perform

    line = socket.socket(fileno=descriptor)
    threads = max(1, cpus() // slots)
    mine = Path(folder, "children", str(os.getpid()))
    with mine.open("w") as lock, line.makefile("r") as names:
        lock.write(mine.name)
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in names:
            perform(Path(folder) / name.strip(), threads=threads)
            gc.collect()  # a Trainer and its model hold each other: models of past tasks would stay for long
            try:
                line.sendall(b".")
            except OSError:
                break
        mine.unlink()


def _start_child(folder: Path, slots: int, inherited: Sequence[int]) -> Child:
    """A child leads a group of its own; what it inherits of the worker, its lock above all, it closes."""
    ours, theirs = socket.socketpair()
    if _fork_is_safe():
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setpgid(0, 0)
                for descriptor in (ours.detach(), *inherited):
                    os.close(descriptor)
                child_main(str(folder), slots, theirs.detach())
                status = 0
            except BaseException:  # a fork must never return into its parent's code
                traceback.print_exc()
            finally:
                os._exit(status)
        with contextlib.suppress(OSError):  # the child may have done it, or be gone
            os.setpgid(pid, pid)
    else:
        os.set_inheritable(theirs.fileno(), True)
        code = (
            f"import sys; sys.path[0:1] = {sys.path[:2]!r}; from fedctl.node.worker import child_main; "
            f"child_main({str(folder)!r}, {slots}, {theirs.fileno()})"
        )
        # A Popen that is forgotten reaps its process by itself, and the status would be lost.
        pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ, setpgroup=0)
    theirs.close()
    return Child(pid=pid, line=ours)


def _fork_is_safe() -> bool:
    """A process with threads may hold locks that its fork would wait for in vain; only Linux lets us count them."""
    try:
        return len(list(Path("/proc/self/task").iterdir())) == 1
    except OSError:
        return False


def oom_kills() -> int:
    """How often the kernel of this machine has killed a process for want of memory; 0 where it does not say."""
    lines = tail(Path("/proc/vmstat"), 2**16).splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _fifo(path: Path) -> int:
    """A FIFO that is open for both ends, so that it never reads as closed."""
    if not path.exists():
        os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK)
