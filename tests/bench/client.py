"""The client's side of the benchmarks over SSH, `python -m tests.bench.client ACTION JSON`: fedctl's, and paramiko's.

It runs in a process of its own, so that its memory is its own, a stall can be bounded, and HOME is that of a bed. The
last line that it prints is what it found. What is called bare is paramiko as its users have it.
"""

import base64
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import paramiko

from fedctl import transfer
from fedctl.connection import LINE_LOST, Connection
from fedctl.errors import ConnectionLost
from fedctl.federation import Federation, Node, TaskSpec
from fedctl.host import Host, Work
from fedctl.hosts import Hosts
from fedctl.records import Blob, TaskKey
from tests.bench.measure import median

NO_BLOB = Blob(digest=64 * "0", size=0)
Found = dict[str, Any]


# fedctl's


def move(node: str, source: str, target: str, digest: str, *, up: bool) -> Found:
    """One file over an open line, as a model goes up and an update comes down."""
    return move_all([node], source, target, digest, up=up)


def move_all(nodes: Sequence[str], source: str, target: str, digest: str, *, up: bool) -> Found:
    """The same for many nodes at once; `target` is a folder here."""
    blob = Blob(digest=digest, size=Path(source).stat().st_size)
    with hosts_of(nodes) as hosts, ThreadPoolExecutor(len(nodes)) as pool:
        moves = list(pool.map(lambda name: ready(name, hosts.of(name), blob, Path(source), Path(target), up=up), nodes))
        before = len(threading.enumerate())
        began, cpu = time.perf_counter(), time.process_time()
        for moved in [pool.submit(one) for one in moves]:
            moved.result()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak_mb(), "threads": before}


def move_on(node: str, source: str, target: str, digest: str, *, up: bool) -> Found:
    """One file over a line that breaks, from where it broke, for as often as that happens."""
    blob = Blob(digest=digest, size=Path(source).stat().st_size)
    with hosts_of([node]) as hosts:
        move = ready(node, hosts.of(node), blob, Path(source), Path(target), up=up)
        for tries in count(1):
            with suppress(ConnectionLost):
                move()
                return {"tries": tries}
    raise AssertionError("counted to the end")


def ready(name: str, host: Host, blob: Blob, source: Path, target: Path, *, up: bool) -> Callable[[], None]:
    """What moves the file, once the line is open and nothing is left of an earlier time."""
    home = Path(str(host.facts()["home"]))
    if up:
        (home / "blobs" / blob.digest).unlink(missing_ok=True)
        return lambda: drop(transfer.put(host.connection(), blob, source))
    key = TaskKey(round=1, node=name)
    host.tasks()  # the run's folder is there from now on
    update = home / "runs" / "bench" / key.folder / "update.safetensors"
    update.parent.mkdir(exist_ok=True)
    update.unlink(missing_ok=True)
    update.symlink_to(source)
    (target / name).unlink(missing_ok=True)
    return lambda: drop(host.fetch_update(key, blob, target / name))


def drop(_: object) -> None:
    pass


def exchanges(node: str, count: int) -> Found:
    """The median of small requests and their answers."""
    with hosts_of([node]) as hosts:
        connection = hosts.of(node).connection()
        return {"seconds": typical(lambda: connection.ask("stat", digests=[]), count)}


def hellos(nodes: Sequence[str]) -> Found:
    """From names to greeted agents."""
    began = time.perf_counter()
    with hosts_of(nodes) as hosts:
        made = time.perf_counter()
        answers = hosts.each(lambda host: host.connection().facts, among=set(nodes))
        seconds = time.perf_counter() - began
    failed = [str(answer) for answer in answers.values() if isinstance(answer, Exception)]
    if failed or len(answers) != len(nodes):
        raise RuntimeError(f"{len(failed)} of {len(nodes)} failed: {failed[:1]}")
    return {"seconds": seconds, "of_which_resolving": made - began, "cpu_seconds": time.process_time()}


def provision(file: str) -> Found:
    """How often the agents are asked, by operation."""
    from fedctl.operations.provision import provision as provide

    asked: Counter[str] = Counter()
    begin = Connection.begin

    def counting(connection: Connection, op: str, *arguments: Any, **fields: Any) -> Any:
        asked[op] += 1
        return begin(connection, op, *arguments, **fields)

    Connection.begin = counting
    began = time.perf_counter()
    done = provide(Path(file), told=lambda _, __: None)
    return {"asked": asked, "changed": done.changed, "failed": done.failed, "seconds": time.perf_counter() - began}


def until_lost(node: str) -> Found:
    """Say `open`, and when the line was found dead, by the clock that all processes share."""
    with hosts_of([node]) as hosts:
        lost = threading.Event()
        hosts.of(node).connection().listen("a task", lambda push: lost.set() if push is LINE_LOST else None)
        print("open", flush=True)
        lost.wait()
        return {"at": time.monotonic()}


@contextmanager
def hosts_of(nodes: Sequence[str]) -> Iterator[Hosts]:
    """The hosts of those names of ~/.ssh/config, with this interpreter."""
    federation = Federation(
        name="bench",
        folder=Path.cwd(),
        task=TaskSpec(model="", data=""),
        nodes=tuple(Node(name=name, host=name, python=sys.executable) for name in nodes),
    )
    work = Work(run="bench", identity="bench", bundle=NO_BLOB, bundle_path=Path(), preload=(), cwd="~")
    hosts = Hosts(federation, work)
    try:
        yield hosts
    finally:
        hosts.close()


# Bare paramiko


def bare_sftp(server: Mapping[str, Any], source: str, target: str, *, up: bool) -> Found:
    """The get or put of an SFTPClient, as it comes."""
    with bare_line(server) as transport:
        files = paramiko.SFTPClient.from_transport(transport)
        began = time.perf_counter()
        (files.put if up else files.get)(source, target)
        return {"seconds": time.perf_counter() - began}


def bare_exchanges(server: Mapping[str, Any], count: int) -> Found:
    """The median of `exec true` on an open line."""
    with bare_line(server) as transport:
        return {"seconds": typical(lambda: bare_true(transport), count)}


def bare_hellos(servers: Sequence[Mapping[str, Any]]) -> Found:
    """Connect, check keys and `exec true`, a thread each."""

    def greet(server: Mapping[str, Any]) -> None:
        with bare_line(server) as transport:
            bare_true(transport)

    began = time.perf_counter()
    with ThreadPoolExecutor(len(servers)) as pool:
        list(pool.map(greet, servers))
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time()}


def bare_until_lost(server: Mapping[str, Any]) -> Found:
    """As `until_lost`, with paramiko's keepalives."""
    with bare_line(server) as transport:
        transport.set_keepalive(5)
        print("open", flush=True)
        while transport.is_active():
            time.sleep(0.05)
        return {"at": time.monotonic()}


@contextmanager
def bare_line(server: Mapping[str, Any]) -> Iterator[paramiko.Transport]:
    """A login with the host key checked."""
    transport = paramiko.Transport(socket.create_connection((server["address"], server["port"])))
    try:
        transport.connect(
            hostkey=paramiko.Ed25519Key(data=base64.b64decode(server["host_key"])),
            username=server["user"],
            pkey=paramiko.Ed25519Key.from_private_key_file(server["key"]),
        )
        yield transport
    finally:
        transport.close()


def bare_true(transport: paramiko.Transport) -> None:
    channel = transport.open_session()
    channel.exec_command("true")
    if channel.recv_exit_status():
        raise RuntimeError("`true` is not true there")


def typical(act: Callable[[], object], count: int) -> float:
    """The median time of an act."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        act()
        found.append(time.perf_counter() - began)
    return median(found)


def peak_mb() -> float:
    """The most memory that this process ever had, file pages included."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


ACTIONS: Mapping[str, Callable[..., Found]] = {
    action.__name__: action
    for action in (
        move,
        move_all,
        move_on,
        exchanges,
        hellos,
        provision,
        until_lost,
        bare_sftp,
        bare_exchanges,
        bare_hellos,
        bare_until_lost,
    )
}


if __name__ == "__main__":
    print(json.dumps(ACTIONS[sys.argv[1]](**json.loads(sys.argv[2]))))
