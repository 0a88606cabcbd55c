"""How much memory other processes have at their worst, and how much time they took: looked at while they live."""

import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

EACH_S = 0.005


class Watch:
    """Use it as a context manager. `pids` says, by what they are called, which processes to look at.

    By the same names: `anonymous` is the most bytes that one of the processes could not have given back (RssAnon),
    `resident` the most with pages of files (RSS), `cpu_s` the processor time of the busiest (Linux).
    """

    def __init__(self, pids: Mapping[str, Callable[[], Iterable[int]]]) -> None:
        self.anonymous: dict[str, int] = defaultdict(int)
        self.resident: dict[str, int] = defaultdict(int)
        self.cpu_s: dict[str, float] = defaultdict(float)
        self._pids = pids
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look_on)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._ending.wait(EACH_S):
            for name, pids in self._pids.items():
                for pid in pids():
                    with suppress(OSError, KeyError):  # it has ended
                        self._look(name, pid)

    def _look(self, name: str, pid: int) -> None:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        self.anonymous[name] = max(self.anonymous[name], _bytes(status["RssAnon"]))
        self.resident[name] = max(self.resident[name], _bytes(status["VmRSS"]))
        self.cpu_s[name] = max(self.cpu_s[name], sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"))


def _bytes(said: str) -> int:
    return int(said.split(maxsplit=1)[0]) * 1024
