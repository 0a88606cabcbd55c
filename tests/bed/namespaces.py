"""Nodes with an address and a hostname of their own: network namespaces on a bridge. Needs root and iproute2.

Beds lie side by side: each takes a number, which is in its addresses and in the names of what it makes, and holds a
lock on it; what a bed that was killed left behind is removed by the next that takes its number.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
import threading
from functools import cache, partial
from pathlib import Path
from typing import Any

from tests.bed import processes
from tests.bed.bed import Bed
from tests.bed.server import SYSTEM_PATH, Server, program

MOST_BEDS = 16


@cache
def why_not() -> str | None:
    """Why there can be no network namespaces here; None where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip", path=SYSTEM_PATH) is None:
        return "ip of iproute2 is not installed"
    name = f"fedbed-try-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        try:
            _ip("-n", name, "link", "add", "one", "type", "veth", "peer", "name", "two")
            _ip("-n", name, "link", "add", "three", "type", "bridge")
            _ip("netns", "exec", name, "unshare", "--uts", "true")
        finally:
            _ip("netns", "delete", name)
    except OSError as error:
        return str(error)
    return None


class NamespaceServer(Server):
    """A server in a namespace, whose name is `namespace`."""

    def __init__(self, name: str, folder: Path, *, namespace: str, **options: Any) -> None:
        self.namespace = namespace
        enter = [program("ip"), "netns", "exec", namespace, "unshare", "--uts", "sh", "-c"]
        super().__init__(name, folder, shell=[*enter, f'hostname {name}; exec "$@"', "sshd"], **options)

    def processes(self) -> list[int]:
        return _processes(self.namespace)


class NamespaceBed(Bed):
    """Nodes are reached at their own address, port 22."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._number, self._lock = _take_number()
        self._made = 0
        self._counting = threading.Lock()
        self.prefix = f"fedbed{self._number}"
        self.network = f"10.91.{self._number}"
        _remove(self.prefix)
        _ip("link", "add", self.prefix, "type", "bridge")
        _ip("address", "add", f"{self.network}.1/24", "dev", self.prefix)
        _ip("link", "set", self.prefix, "up")

    def cut(self, server: Server) -> None:
        _ip("link", "set", self._link(server), "down")

    def heal(self, server: Server) -> None:
        _ip("link", "set", self._link(server), "up")

    def slow(self, server: Server, rate: float) -> None:
        shape = ("root", "tbf", "rate", f"{int(rate * 8)}bit", "burst", "64kb", "latency", "200ms")
        _run("tc", "qdisc", "replace", "dev", self._link(server), *shape)
        _run("tc", "-n", self._link(server), "qdisc", "replace", "dev", "eth0", *shape)

    def close(self) -> None:
        super().close()
        _remove(self.prefix)
        self._lock.close()

    def _link(self, server: Server) -> str:
        """The bridge's end of the node's link; the namespace has the same name."""
        assert isinstance(server, NamespaceServer)
        return server.namespace

    def _make(self, name: str, options: dict[str, Any]) -> Server:
        with self._counting:
            self._made += 1
            number = self._made
        link, address = f"{self.prefix}-{number}", f"{self.network}.{number + 1}"
        hardware = f"02:fe:db:00:{self._number:02x}:{number:02x}"
        _ip("netns", "add", link)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "address", hardware, "netns", link)
        _ip("link", "set", link, "master", self.prefix, "up")
        _ip("-n", link, "link", "set", "lo", "up")
        _ip("-n", link, "address", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", link, "link", "set", "eth0", "up")
        _ip("-n", link, "route", "add", "default", "via", f"{self.network}.1")
        # A node that is cut off must be silent: if its neighbours had to ask for it, they would learn that it is gone.
        _ip("neighbour", "replace", address, "lladdr", hardware, "dev", self.prefix, "nud", "permanent")
        return NamespaceServer(name, self.folder / name, namespace=link, address=address, port=22, **options)


def _take_number() -> tuple[int, Any]:
    """A number that no other bed has, and the file that holds its lock; raises RuntimeError when all are taken."""
    for number in range(MOST_BEDS):
        lock = (Path(tempfile.gettempdir()) / f"fedctl-bed-{number}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
        else:
            return number, lock
    raise RuntimeError(f"{MOST_BEDS} beds of network namespaces are in use")


def _remove(prefix: str) -> None:
    """Whatever a bed of that prefix made, and all processes in it."""
    for namespace in (line.split()[0] for line in _ip("netns", "list").splitlines()):
        if namespace.startswith(f"{prefix}-"):
            processes.end(partial(_processes, namespace))
            _ip("netns", "delete", namespace)
    # A namespace takes its links along later, when somebody may want their names.
    for link in [path.name for path in Path("/sys/class/net").glob(f"{prefix}-*")] + [prefix]:
        subprocess.run([program("ip"), "link", "delete", link], capture_output=True)


def _processes(namespace: str) -> list[int]:
    """Those of a namespace; none when it has gone."""
    if not Path("/run/netns", namespace).exists():
        return []
    return [int(pid) for pid in _ip("netns", "pids", namespace).split()]


def _ip(*words: str) -> str:
    return _run("ip", *words)


def _run(name: str, *words: str) -> str:
    done = subprocess.run([program(name), *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"{name} {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
