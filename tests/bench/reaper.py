"""Runs a command and waits for every process that comes of it: `python -m tests.bench.reaper COMMAND...`.

A worker is detached, so its CPU time would go to whoever adopts it. On Linux this process makes itself that adopter,
waits for the last of them, and prints the sum as the last line of its output: {"cpu_seconds": ...}.
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
LEAVE_S = 20.0


def main(argv: list[str]) -> int:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    status = subprocess.run(argv, stdout=subprocess.DEVNULL, check=False).returncode
    left = _reap()
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({"cpu_seconds": spent.ru_utime + spent.ru_stime, "status": status, "killed": left}))
    return status


def _reap() -> int:
    """Wait for all that were adopted; returns how many had to be killed because they would not leave."""
    deadline = time.monotonic() + LEAVE_S
    killed = 0
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return killed
        if pid == 0:
            if time.monotonic() > deadline:
                for child in _children():
                    os.kill(child, signal.SIGKILL)
                    killed += 1
            time.sleep(0.02)


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
