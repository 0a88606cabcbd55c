"""`fedctl logs`, `stop` and `clean`: what one does with a run that is there."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fedctl import rundir
from fedctl.errors import FedctlError, StateError, UsageError
from fedctl.host import Host
from fedctl.hosts import Hosts
from fedctl.journal import read
from fedctl.operations.launch import configured, work_of
from fedctl.records import TaskKey
from fedctl.rundir import RunDir
from fedctl.state import fold

LEAVE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What `stop` or `clean` did. `machines` maps each to what was done there, or to why it was not."""

    run: str
    coordinator: str
    machines: dict[str, str]
    failed: tuple[str, ...]


def stop(run: RunDir) -> Ended:
    """End a run's coordinator, then its workers on every node."""
    coordinator = _stop_coordinator(run)
    return _on_every_host(run, coordinator, lambda host: host.stop(), "stopped")


def clean(run: RunDir) -> Ended:
    """Remove what a run left on its nodes, then here. The folder here stays when a node could not be reached."""
    if run.is_alive():
        raise StateError(f"run {run.name} is running", hint=f"`fedctl stop {run.name}` first")
    state = fold(read(run.journal))
    models = {report.model.digest for report in state.history}
    models |= {blob.digest for blob in (state.initial, state.model) if blob}
    ended = _on_every_host(run, "not running", lambda host: host.remove(models), "removed")
    if not ended.failed:
        rundir.remove(run)
    return ended


def log(run: RunDir, node: str, *, follow: bool = False, wait_s: float = 0.5) -> Iterator[str]:
    """A node's training log: that of its newest task, and with `follow` whatever comes, until the run is over."""
    federation = configured(run)
    if node not in {known.name for known in federation.nodes}:
        raise UsageError(
            f"run {run.name} has no node {node}", hint=f"there are {', '.join(n.name for n in federation.nodes[:10])}"
        )
    hosts = Hosts(federation, work_of(federation, run))
    try:
        yield from _log(run, hosts.of(node), node, follow=follow, wait_s=wait_s)
    finally:
        hosts.close()


def _log(run: RunDir, host: Host, node: str, *, follow: bool, wait_s: float) -> Iterator[str]:
    shown: dict[str, int] = {}
    while True:
        state = fold(read(run.journal))
        folders = _folders(host, node)
        if not folders:
            kept = run.log(node)
            yield kept.read_text() if kept.exists() else f"node {node} has no log of run {run.name}\n"
            return
        for key in folders if shown else folders[-1:]:
            text = host.read_log(key, shown.get(str(key), 0))
            if text and str(key) not in shown:
                yield f"==> {key} <==\n"
            shown[str(key)] = shown.get(str(key), 0) + len(text)
            yield text.decode(errors="replace")
        if not follow or state.is_over or not run.is_alive():
            return
        time.sleep(wait_s)


def _folders(host: Host, node: str) -> list[TaskKey]:
    """The node's training tasks that left a folder, oldest first."""
    from fedctl.node.agent import key_of

    keys = [TaskKey.parse(key_of(folder)) for folder in host.tasks()["tasks"]]
    return sorted((key for key in keys if key.node == node and key.kind in ("train", "alone")), key=_age)


def _age(key: TaskKey) -> tuple[bool, int, int]:
    """The training of a round is what one asks for; that of the node alone stands in for it only where it is all."""
    return (key.kind == "train", key.round, key.attempt)


def _stop_coordinator(run: RunDir) -> str:
    if not run.is_alive():
        return "not running"
    owner = run.owner()
    if owner.get("host") != socket.gethostname():
        raise StateError(
            f"run {run.name} is coordinated on {owner.get('host')}", hint="stop it there, or end its process by hand"
        )
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(owner["pid"]), signal.SIGTERM)
    deadline = time.monotonic() + LEAVE_S
    while run.is_alive():
        if time.monotonic() > deadline:
            raise StateError(f"process {owner['pid']} does not leave run {run.name}", hint=f"`kill -9 {owner['pid']}`")
        time.sleep(0.05)
    return "stopped"


def _on_every_host(run: RunDir, coordinator: str, action: Callable[[Host], None], done: str) -> Ended:
    federation = configured(run)
    hosts = Hosts(federation, work_of(federation, run))
    machines: dict[str, str] = {}
    failed: list[str] = []
    try:
        for machine, host in hosts.by_machine().items():
            try:
                action(host)
                machines[machine] = done
            except FedctlError as error:
                machines[machine] = error.message
                failed.append(machine)
    finally:
        hosts.close()
    return Ended(run=run.name, coordinator=coordinator, machines=machines, failed=tuple(failed))
