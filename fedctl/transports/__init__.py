"""The family of transports: ways to run a command on a node with its stdin, stdout, stderr and exit status.

Nothing more is asked of one, so a new one is a small file here and a line in `Transports.to`.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fedctl.federation import Node

if TYPE_CHECKING:
    from fedctl.transports.client import Client
    from fedctl.transports.sshconfig import Endpoint

RESOLVED_AT_ONCE = 8


LOST = 255
"""The exit status of a command whose end was not heard, as `ssh` has it."""


class Process(Protocol):
    """A command that runs on a node. Reading and writing may happen in different threads."""

    def write(self, data: bytes) -> None:
        """Write all of it to stdin; raises OSError when the command has gone."""

    def close_stdin(self) -> None:
        """Tell the command that nothing more will come."""

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes of stdout, or fewer at its end."""
        ...

    def errors(self) -> str:
        """The end of what stands on stderr so far."""
        ...

    def wait(self) -> int:
        """The exit status."""
        ...

    def kill(self) -> None:
        """End the command and the line to it, now."""


class Transport(Protocol):
    """A way to a node."""

    def open(self, argv: Sequence[str]) -> Process:
        """Start a command there; raises NodeError when the node cannot be reached."""
        ...


class Transports:
    """The ways to a federation's nodes; what several of them need (bastions, unlocked keys) is had once, here."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._client: Client | None = None

    def to(self, node: Node) -> Transport:
        """The way to that node; raises ConfigError where ~/.ssh/config or fed.yaml asks for what cannot be had."""
        return self.to_each([node])[0]

    def to_each(self, nodes: Sequence[Node]) -> list[Transport]:
        """The ways to those nodes; asks on the terminal for what unlocks their keys. Raises ConfigError."""
        with ThreadPoolExecutor(RESOLVED_AT_ONCE) as pool:  # each may ask `ssh -G`
            endpoints = list(pool.map(self._resolve, nodes))
        return [self._way(endpoint) for endpoint in endpoints]

    def close(self) -> None:
        """Close what the ways shared."""
        if self._client is not None:
            self._client.close()

    def _resolve(self, node: Node) -> "Endpoint | None":
        """Where the node's server is; None for this machine."""
        if node.host == "local":
            return None
        from fedctl.transports.ssh import lookup  # paramiko is slow to import
        from fedctl.transports.sshconfig import resolve

        return resolve(node, self._folder, lookup=lookup)

    def _way(self, endpoint: "Endpoint | None") -> Transport:
        if endpoint is None:
            from fedctl.transports.local import LocalTransport

            return LocalTransport()
        from fedctl.transports.ssh import SshTransport, new_client

        self._client = self._client or new_client()
        return SshTransport(self._client, endpoint)
