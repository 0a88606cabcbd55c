"""The byte streams below SSH: a TCP connection or a ProxyCommand, each of which knows when it last heard something.

Paramiko leaves Nagle's algorithm on (44 ms a small exchange) and never judges its keepalives, so the socket is ours.
"""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

from fedctl.errors import Unreachable
from fedctl.transports.sshconfig import Endpoint

FAMILIES = {"any": socket.AF_UNSPEC, "inet": socket.AF_INET, "inet6": socket.AF_INET6}
TICK_S = 1.0
MOST_INTERVAL_S, MOST_COUNT = 32_767, 127
"""What Linux takes for its TCP keepalives."""
AHEAD = 2**18
"""Paramiko reads every packet in two; of these bytes there are several."""


class Ear:
    """A stream that remembers when it last brought something."""

    def __init__(
        self, stream: Any, process: "subprocess.Popen[bytes] | None" = None, said: BinaryIO | None = None
    ) -> None:
        self._stream = stream
        self._process = process
        self._said = said
        self.complaint = ""
        """The last that a ProxyCommand said, once the line is closed."""
        self._ahead = memoryview(b"")
        self.heard_at = time.monotonic()
        self.settimeout = stream.settimeout
        self.send = stream.send
        self._closed = False  # paramiko looks at it
        self._closing = threading.Lock()

    def recv(self, size: int) -> bytes:
        if not self._ahead:
            self._ahead = memoryview(self._stream.recv(AHEAD))
            self.heard_at = time.monotonic()
        data, self._ahead = bytes(self._ahead[:size]), self._ahead[size:]
        return data

    def close(self) -> None:
        """Close it; whoever comes second, of several threads that may, waits until all is closed."""
        with self._closing:
            self._closed = True
            self._stream.close()
            process, self._process = self._process, None  # once: by the second time its number may be a stranger's
            if process is not None:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if self._said is not None and not self._said.closed:
                self._said.seek(0)
                self.complaint = self._said.read().decode(errors="replace").strip().rpartition("\n")[2][:500]
                self._said.close()


def connect(endpoint: Endpoint) -> Ear:
    """A line to the server's port; raises Unreachable."""
    if endpoint.proxy_command is not None:
        return _through_command(endpoint.proxy_command)
    error: OSError | None = None
    for family, kind, protocol, _, address in _addresses(endpoint):
        try:
            line = socket.socket(family, kind, protocol)
        except OSError as failed:  # a name may have an address of a family that this machine has not
            error = failed
            continue
        try:
            line.settimeout(endpoint.connect_timeout_s)
            if endpoint.bind_address:
                line.bind((endpoint.bind_address, 0))
            line.connect(address)
            _tune(line, endpoint)
        except OSError as failed:
            line.close()
            error = failed
        else:
            return Ear(line)
    raise Unreachable(
        f"{_where(endpoint)} does not answer: {_reason(error, endpoint)}",
        hint=f"is the machine up, and port {endpoint.port} open from here? "
        f"`ssh -v -p {endpoint.port} {endpoint.name}` shows the way",
        stage="network",
    ) from error


def _addresses(endpoint: Endpoint) -> Iterator[Any]:
    try:
        yield from socket.getaddrinfo(
            endpoint.address, endpoint.port, FAMILIES[endpoint.address_family], socket.SOCK_STREAM
        )
    except (OSError, UnicodeError) as error:  # the latter for what can be no name: a..b
        raise Unreachable(
            f"the name {endpoint.address} is not known: {(getattr(error, 'strerror', None) or str(error)).lower()}",
            hint="correct `host:` in fed.yaml, or HostName in ~/.ssh/config",
            stage="name",
        ) from error


def _tune(line: socket.socket, endpoint: Endpoint) -> None:
    """No waiting to fill packets, and a peer that is gone is noticed even while nothing is sent."""
    interval_s = min(max(1, round(endpoint.alive_interval_s)), MOST_INTERVAL_S)
    count = min(endpoint.alive_count, MOST_COUNT)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", interval_s),
        ("TCP_KEEPINTVL", interval_s),
        ("TCP_KEEPCNT", count),
        ("TCP_USER_TIMEOUT", min(1000 * interval_s * count, 2**31 - 1)),
    ):
        if hasattr(socket, name):  # macOS has not all of them; the watch over what was heard works everywhere
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _through_command(command: str) -> Ear:
    """A ProxyCommand's stdin and stdout, as one socket."""
    ours, theirs = socket.socketpair()
    said = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the line)
    try:
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command}"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=said,
            start_new_session=True,
        )
    except OSError as error:
        ours.close()
        said.close()
        raise Unreachable(f"the ProxyCommand cannot be run: {error.strerror}", stage="network") from error
    finally:
        theirs.close()
    return Ear(ours, process, said)


def _where(endpoint: Endpoint) -> str:
    return endpoint.address if endpoint.port == 22 else f"{endpoint.address} port {endpoint.port}"


def _reason(error: OSError | None, endpoint: Endpoint) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing came within {endpoint.connect_timeout_s:g} s"
    return (error.strerror or str(error)).lower() if error else "it has no address"


class Closable(Protocol):
    """A line, or a channel of one."""

    def close(self) -> None: ...


class Watched(Closable, Protocol):
    """A line that can be judged, and closed where it is dead."""

    @property
    def silence_s(self) -> float: ...

    @property
    def bound_s(self) -> float: ...


@contextlib.contextmanager
def closing_after(seconds: float, line: Closable) -> Iterator[None]:
    """Close a line or a channel that lets somebody wait longer than that: paramiko would wait for ever."""
    guard = threading.Timer(seconds, line.close)
    guard.daemon = True
    guard.start()
    try:
        yield
    finally:
        guard.cancel()


class Watch:
    """Closes lines that have brought nothing for too long, though they were asked; one thread for all lines."""

    def __init__(self) -> None:
        self._lines: set[Watched] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    def add(self, line: Watched) -> None:
        with self._lock:
            self._lines.add(line)

    def remove(self, line: Watched) -> None:
        with self._lock:
            self._lines.discard(line)

    def close(self) -> None:
        self._closed.set()

    def _look(self) -> None:
        looked_at = time.monotonic()
        slept_s = 0.0
        while not self._closed.wait(TICK_S):
            now = time.monotonic()
            slept_s = max(0.0, slept_s - TICK_S, now - looked_at - 2 * TICK_S)  # this process was held up itself
            looked_at = now
            with self._lock:
                dead = [line for line in self._lines if line.silence_s > line.bound_s + slept_s]
                self._lines.difference_update(dead)
            for line in dead:  # one that is closed over a dead bastion may wait until that is closed too
                threading.Thread(target=line.close, name="close", daemon=True).start()
