"""`fedctl logs`, `stop` and `clean`: what one does with a run that is there, and with nodes that are to be left."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedctl import rundir, topology
from fedctl.errors import ConnectionLost, FedctlError, NodeError, StateError, UsageError
from fedctl.host import Host, Work
from fedctl.hosts import Hosts
from fedctl.journal import read
from fedctl.operations.launch import configured, work_of
from fedctl.records import Blob, TaskKey
from fedctl.rundir import RunDir
from fedctl.state import fold

LEAVE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What `stop` or `clean` did. `machines` maps each to what was done there, or to why it was not.

    `run` is None where it was about the nodes as a whole.
    """

    run: str | None
    coordinator: str
    machines: dict[str, str]
    failed: tuple[str, ...]


def stop(run: RunDir) -> Ended:
    """End a run's coordinator, then its workers on every node."""
    coordinator = _stop_coordinator(run)
    with contextlib.closing(_hosts(run)) as hosts:
        return _ended(run, coordinator, hosts.each(Host.stop), "stopped")


def clean(run: RunDir) -> Ended:
    """Remove what a run left on its nodes, then here. The folder here stays when a node could not be reached."""
    _require_dead([run])
    state = fold(read(run.journal))
    models = {report.model.digest for report in state.history}
    models |= {blob.digest for blob in (state.initial, state.model) if blob}
    with contextlib.closing(_hosts(run)) as hosts:
        ended = _ended(run, "not running", hosts.each(lambda host: host.remove(models)), "removed")
    if not ended.failed:
        rundir.remove(run)
    return ended


def clean_nodes(path: Path, run: RunDir | None = None, *, force: bool = False) -> Ended:
    """Remove all that fedctl made on the nodes of a federation: of every run, and the agent itself.

    With a run they are the nodes that it was started with, and it is removed here too. A node where a run of another
    federation is at work is left as it is, unless by force.
    """
    federation = topology.load(path) if run is None else configured(run)
    known = rundir.every(federation.folder)
    _require_dead(known)
    identities = set()
    for one in known:
        with contextlib.suppress(StateError):  # whose damaged run it was is lost: it counts as a stranger's
            identities.add(str(one.facts()["identity"]))
    nothing = Blob(digest="0" * 64, size=0)
    work = Work(run="clean", identity="clean", bundle=nothing, bundle_path=path, preload=(), cwd=str(federation.folder))
    with contextlib.closing(Hosts(federation, work)) as hosts:
        # All are stopped before any is removed: several machines, and several Pythons on one, may share a home.
        stopped = hosts.each(lambda host: host.stop_all(identities, force=force))
        free = [machine for machine, answer in stopped.items() if not isinstance(answer, FedctlError)]
        ended = _ended(run, "not running", {**stopped, **hosts.each(Host.remove_all, among=free)}, "removed")
    if run is not None and not ended.failed:
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
    shown: dict[TaskKey, int] = {}
    while True:
        goes_on = follow and run.is_alive() and not fold(read(run.journal)).is_over
        try:
            yield from _fresh(host, node, shown)
        except ConnectionLost:  # what the node writes meanwhile is shown once it is back
            if not (shown and goes_on):
                raise
        if not goes_on:
            break
        time.sleep(wait_s)
    if not shown:
        kept = run.log(node)
        yield kept.read_text() if kept.exists() else f"node {node} has no log of run {run.name}\n"


def _fresh(host: Host, node: str, shown: dict[TaskKey, int]) -> Iterator[str]:
    """What the node's tasks have written since, from the newest at first on; `shown` counts their bytes."""
    keys = _keys(host, node)
    for key in [key for key in keys if _age(key) >= min(map(_age, shown))] if shown else keys[-1:]:
        while text := host.read_log(key, shown.get(key, 0)):
            if key not in shown:
                yield f"==> {key} <==\n"
            shown[key] = shown.get(key, 0) + len(text)
            yield text.decode(errors="replace")


def _keys(host: Host, node: str) -> list[TaskKey]:
    """The node's training tasks that left a folder, oldest first; raises NodeError."""
    from fedctl.node.agent import key_of

    try:
        keys = [TaskKey.parse(key_of(folder)) for folder in dict(host.tasks()["tasks"])]
    except (KeyError, TypeError, ValueError) as error:
        raise NodeError("the agent's list of tasks is none") from error
    return sorted((key for key in keys if key.node == node and key.kind in ("train", "alone")), key=_age)


def _age(key: TaskKey) -> tuple[bool, int, int]:
    """The training of a round is what one asks for; that of the node alone stands in for it only where it is all."""
    return (key.kind == "train", key.round, key.attempt)


def _stop_coordinator(run: RunDir) -> str:
    if not run.is_alive(surely=True):
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


def _require_dead(runs: Iterable[RunDir]) -> None:
    for run in runs:
        if run.is_alive(surely=True):
            raise StateError(f"run {run.name} is running", hint=f"`fedctl stop {run.name}` first")


def _hosts(run: RunDir) -> Hosts:
    federation = configured(run)
    return Hosts(federation, work_of(federation, run))


def _ended(run: RunDir | None, coordinator: str, answers: Mapping[str, FedctlError | None], done: str) -> Ended:
    failed = {machine: answer.message for machine, answer in answers.items() if isinstance(answer, FedctlError)}
    return Ended(
        run=run.name if run else None,
        coordinator=coordinator,
        machines=dict.fromkeys(answers, done) | failed,
        failed=tuple(failed),
    )
