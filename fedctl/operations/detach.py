"""`fedctl launch --detach`: a run whose coordinator is a process of its own, which needs no terminal."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedctl.errors import ConfigError, FedctlError, ModelError, NodeError, RunError, StateError, UsageError
from fedctl.events import RunStarted
from fedctl.journal import read
from fedctl.operations.launch import Interrupted, begin, leaving_nothing
from fedctl.rundir import RunDir
from fedctl.state import RunState, fold

LOOK_S = 0.1
_ERRORS = (UsageError, ConfigError, NodeError, RunError, ModelError, StateError, Interrupted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detached:
    """A run that is going, or that is over already; `log` is where its coordinator, process `pid`, puts its words."""

    state: RunState
    pid: int
    log: Path


def launch(path: Path, name: str | None = None, overrides: Sequence[str] = (), *, hold: bool = False) -> Detached:
    """Start a new run and return once its first model is built. Code that cannot be used leaves no run behind."""
    federation, run = begin(path, name, overrides)
    with leaving_nothing(federation, run):
        return resume(run, hold=hold)


def resume(run: RunDir, *, hold: bool = False) -> Detached:
    """Start a coordinator that goes on with a run, and return once it does; raises the error that it ends with."""
    known, log = len(read(run.journal)), run.log("coordinator")
    said = log.stat().st_size if log.exists() else 0
    process = _start(run, log, hold=hold)
    try:
        while True:
            status = process.poll()
            events = read(run.journal)
            state = fold(events)
            has_begun = any(isinstance(event, RunStarted) for event in events[known:])
            if has_begun and (state.model is not None or state.is_over):
                return Detached(state=state, pid=process.pid, log=log)
            if status is not None:
                raise _error(run, status, log, log.read_bytes()[said:].decode("utf-8", "replace"))
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        raise Interrupted(
            f"run {run.name} goes on without this terminal",
            hint=f"`fedctl status {run.name} --follow` watches it, `fedctl stop {run.name}` ends it",
        ) from None


def _start(run: RunDir, log: Path, *, hold: bool) -> subprocess.Popen[bytes]:
    """The coordinator in a session of its own, which no terminal ends; what it needs to know stands in the run."""
    command = [sys.executable, "-P", "-m", "fedctl", "launch", "--resume", str(run.path), *(["--hold"] if hold else [])]
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as words:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb", "NO_COLOR": "1"},
        )


def _error(run: RunDir, status: int, log: Path, words: str) -> FedctlError:
    """The error that the coordinator ended with before the run was going, by its exit code and its last words."""
    message, _, hint = words.rpartition("error: ")[2].strip().partition("\nhint: ")
    kind = next((kind for kind in _ERRORS if kind.exit_code == status), None)
    if kind is None or not message:
        return FedctlError(f"the coordinator of run {run.name} ended with status {status}", hint=f"`less {log}`")
    return kind(message, hint=hint or None)
