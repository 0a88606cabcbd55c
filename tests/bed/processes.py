"""Finding and ending the processes of a node."""

import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path


def marked(variable: str) -> list[int]:
    """Those that have `NAME=value` in their environment."""
    found = []
    for pid in _all():
        try:
            if variable.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
        except OSError:
            continue
    return found


def descendants(*ancestors: int) -> list[int]:
    """Children, their children and so on, without the ancestors themselves."""
    children: dict[int, list[int]] = {}
    for pid in _all():
        if (parent := _parent(pid)) is not None:
            children.setdefault(parent, []).append(pid)
    found, look_at = [], list(ancestors)
    while look_at:
        new = children.get(look_at.pop(), [])
        found += new
        look_at += new
    return found


def name(pid: int) -> str:
    """The program's name; empty when the process has gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def kill(pids: Iterable[int], sign: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids:
        try:
            os.kill(pid, sign)
        except ProcessLookupError:
            continue


def end(find: Callable[[], list[int]], seconds: float = 10) -> None:
    """Kill what `find` finds until it finds nothing, twice: a process that is being started shows no environment."""
    wait_until(lambda: not _killed(find()) and not _killed(find()), "processes are still there", seconds)


def wait_until(condition: Callable[[], object], what: str, seconds: float = 10) -> None:
    """Raises TimeoutError, saying what, when the condition does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.01)


def _killed(pids: list[int]) -> list[int]:
    kill(pids)
    return pids


def _all() -> list[int]:
    found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in found if pid != os.getpid()]


def _parent(pid: int) -> int | None:
    """None for a process that has gone or only waits to be reaped."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)
