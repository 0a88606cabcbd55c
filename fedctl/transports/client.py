"""The SSH lines of this process: one a server, shared by all that runs there; bastions are lines too."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from fedctl.errors import LoginError, NodeError, Unreachable
from fedctl.transports.channel import ChannelProcess
from fedctl.transports.keyring import Keyring
from fedctl.transports.sockets import Watch
from fedctl.transports.sshconfig import Endpoint

AT_ONCE_A_SERVER, AT_ONCE = 8, 64
MOST_LINES = 8
PATIENCE_S = 30.0
"""How long a server that turns connections away is asked again."""

Connected = TypeVar("Connected")


class Refused(Exception):
    """The server opens no such channel; `is_forbidden` where it is its will and not its state."""

    def __init__(self, reason: str, *, is_forbidden: bool) -> None:
        super().__init__(reason)
        self.is_forbidden = is_forbidden


class Line(Protocol):
    """A connection to a server, logged in."""

    @property
    def is_alive(self) -> bool: ...

    @property
    def is_used(self) -> bool:
        """A command has run over it."""
        ...

    def open_session(self, command: str) -> ChannelProcess:
        """Start a command; raises Refused, or OSError where the line is broken."""
        ...

    def open_way(self, address: str, port: int) -> Any:
        """A stream on to another server; raises Refused, or OSError where the line is broken."""
        ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Place:
    """One server's port: how many may log in at once, and the newest failure to get there."""

    turns: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(AT_ONCE_A_SERVER))
    failed_at: float = 0.0
    failure: Unreachable | None = None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for one's turn; whoever waited while another found nobody there need not try it too."""
        began = time.monotonic()
        with self.turns:
            if self.failure and self.failed_at > began:
                raise self.failure
            try:
                yield
            except Unreachable as error:
                if error.stage != "greeting":
                    self.failed_at, self.failure = time.monotonic(), error
                raise


def patiently(connect: Callable[[], Connected]) -> Connected:
    """What `connect` gives, asked again while the server turns connections away (MaxStartups); raises Unreachable."""
    began = time.monotonic()
    rest_s = 0.25
    while True:
        try:
            return connect()
        except Unreachable as error:
            if error.stage != "greeting" or time.monotonic() - began > PATIENCE_S:
                raise
        time.sleep(rest_s * random.uniform(0.5, 1.0))
        rest_s = min(8.0, 2 * rest_s)


@dataclass(slots=True)
class Making:
    """One server's new lines, made one at a time, and the newest failure to make one."""

    turn: threading.Lock = field(default_factory=threading.Lock)
    tries: int = 0
    failure: NodeError | None = None


class Client:
    """What the lines share: keys, bastions, the watch over them, and how many logins begin at once."""

    def __init__(self, connect: "Callable[[Client, Endpoint], Line]", keyring: Keyring) -> None:
        self.keyring = keyring
        self.watch = Watch()
        self.logins = threading.Semaphore(AT_ONCE)
        self._connect = connect
        self._lock = threading.Lock()
        self._places: dict[tuple[str, int, tuple[Endpoint, ...]], Place] = {}
        self._making: dict[Endpoint, Making] = {}
        self._lines: dict[Endpoint, list[Line]] = {}
        self._asking: list[Line] = []

    def place(self, endpoint: Endpoint) -> Place:
        with self._lock:
            return self._places.setdefault((endpoint.address, endpoint.port, endpoint.jumps), Place())

    def session(self, endpoint: Endpoint, command: str) -> ChannelProcess:
        """Start a command, on another line where the server wants no more of them on one (MaxSessions)."""
        for number in range(MOST_LINES):
            line = self._line(endpoint, number)
            self._asking.append(line)
            try:
                return line.open_session(command)
            except Refused as refusal:
                # A line whose command has just ended, or is about to begin, is taken; it is no line that takes none.
                if self._asking.count(line) == 1 and not line.is_used:
                    raise NodeError(
                        f"{endpoint.name} opens no session: {refusal}",
                        hint="its sshd_config says `MaxSessions 0`, or the key is bound to forwarding alone",
                    ) from refusal
            except OSError as error:
                line.close()
                raise Unreachable(f"the line to {endpoint.name} broke: {error}") from error
            finally:
                self._asking.remove(line)
        raise NodeError(f"{endpoint.name} opens no more sessions", hint="raise MaxSessions in its sshd_config")

    def way(self, bastion: Endpoint, target: Endpoint) -> Any:
        """A stream from a bastion on to a server behind it."""
        try:
            line = self._line(bastion, 0)
        except NodeError as error:
            what = f"the bastion {bastion.name}: "
            if not error.message.startswith(what):  # the failure of one is told to all behind it
                error.message = what + error.message
            raise
        try:
            return line.open_way(target.address, target.port)
        except Refused as refusal:
            if refusal.is_forbidden:
                raise LoginError(
                    f"the bastion {bastion.name} forbids forwarding to {target.address} port {target.port}",
                    hint="it needs `AllowTcpForwarding yes` for this account, and no `permitopen` that shuts this out",
                ) from refusal
            raise Unreachable(
                f"the bastion {bastion.name} does not reach {target.address} port {target.port}: {refusal}",
                hint=f"try `ssh {bastion.name}`, and from there `ssh -p {target.port} {target.address}`",
            ) from refusal
        except OSError as error:
            line.close()
            raise Unreachable(f"the line to the bastion {bastion.name} broke: {error}") from error

    def close(self) -> None:
        """Close every line; what runs at their ends goes on."""
        self.watch.close()
        for line in reversed([line for lines in list(self._lines.values()) for line in lines]):
            line.close()
        self.keyring.close()

    def _line(self, endpoint: Endpoint, number: int) -> Line:
        """The line of that number among those that live, made where there are fewer.

        Raises NodeError. Whoever waits while another fails has failed too: many nodes may lie behind one bastion.
        """
        with self._lock:
            making = self._making.setdefault(endpoint, Making())
            tries = making.tries
        with making.turn:
            lines = [line for line in self._lines.get(endpoint, []) if line.is_alive]
            if number >= len(lines):
                if making.failure is not None and making.tries != tries:
                    raise making.failure
                try:
                    lines.append(self._connect(self, endpoint))
                    making.failure = None
                except NodeError as error:
                    making.failure = error
                    raise
                finally:
                    making.tries += 1
            self._lines[endpoint] = lines
            return lines[min(number, len(lines) - 1)]
