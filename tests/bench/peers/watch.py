"""Looks, five times a second, at the memory of all processes of a run and at what its lines carried."""

import os
import resource
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from tests.bed.relay import Relay
from tests.bench.peers.course import COORDINATOR, Sample

EACH_S = 0.2
PSS_EACH = 15
"""Adding up shared pages takes milliseconds a process, so it is done at one of so many looks."""


class Watch:
    """Use it as a context manager. While it is open it looks at `lines` and at all descendants of this one's parent.

    Whose a process is: `roots` says it by number, `marks` by a word of its environment, else it is its parent's. The
    `up` of the lines leads to nodes, or, with `nodes_call`, from them. `cpu_s` is in the end the time of this process,
    of the lines, and of what has ended before.
    """

    def __init__(self, lines: Iterable[Relay], *, nodes_call: bool) -> None:
        self.samples: list[Sample] = []
        self.roots: dict[int, str] = {}
        self.marks: dict[bytes, str] = {}
        self.cpu_s = 0.0
        self._lines = list(lines)
        self._nodes_call = nodes_call
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def __enter__(self) -> Self:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu_s = spent.ru_utime + spent.ru_stime
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self.samples.append(self._look(with_pss=True))
        ticks = sum(int(part) for line in self._lines for part in _stat(line._process.pid)[11:13])
        self.cpu_s += time.process_time() + ticks / os.sysconf("SC_CLK_TCK")

    def _look_on(self) -> None:
        while not self._ending.is_set():
            self.samples.append(self._look(with_pss=len(self.samples) % PSS_EACH == 0))
            self._ending.wait(EACH_S)

    def _look(self, *, with_pss: bool) -> Sample:
        up, down = (sum(line.carried(way) for line in self._lines) for way in ("up", "down"))
        to_nodes, from_nodes = (down, up) if self._nodes_call else (up, down)
        owners = self._owners()
        rss, pss = Counter[str](), Counter[str]()
        for pid, owner in owners.items():
            rss[owner] += _pages(pid) * os.sysconf("SC_PAGE_SIZE")
            if with_pss:
                pss[owner] += _shared_out(pid)
        lo = received(Path("/proc/net/dev").read_text())
        return Sample(at=time.time(), to_nodes=to_nodes, from_nodes=from_nodes, lo=lo, rss=dict(rss), pss=dict(pss))

    def _owners(self) -> dict[int, str]:
        """Whose each process of the run is; those who look on are nobody's."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (stat := _stat(int(entry.name))):
                children.setdefault(int(stat[1]), []).append(int(entry.name))
        apart = {line._process.pid for line in self._lines}
        found: dict[int, str] = {}
        look_at = [(pid, COORDINATOR) for pid in children.get(os.getppid(), [])]
        while look_at:
            pid, owner = look_at.pop()
            if pid in apart:
                continue
            if pid != os.getpid():
                owner = found[pid] = self.roots.get(pid) or self._marked(pid) or owner
            look_at += [(child, owner) for child in children.get(pid, [])]
        return found

    def _marked(self, pid: int) -> str | None:
        words = _read(pid, "environ").split(b"\0") if self.marks else []
        return next((self.marks[word] for word in words if word in self.marks), None)


def received(text: str) -> int:
    """The bytes that the loopback took in, by /proc/net/dev."""
    return int(text.partition("lo:")[2].split()[0])


def _stat(pid: int) -> list[bytes]:
    """What stands after the name in a process's `stat`; nothing of one that has gone."""
    return _read(pid, "stat").rpartition(b")")[2].split()


def _pages(pid: int) -> int:
    return int((_read(pid, "statm").split() or [0, 0])[1])


def _shared_out(pid: int) -> int:
    """The bytes that a process has, of shared pages its share."""
    return int((_read(pid, "smaps_rollup").partition(b"\nPss:")[2].split() or [0])[0]) * 1024


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
