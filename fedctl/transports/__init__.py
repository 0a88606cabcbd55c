"""The family of transports: ways to run a command on a node with its stdin, stdout, stderr and exit status.

Nothing more is asked of one, so a new one is a small file here and a line in `Transports.to`.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fedctl.federation import Node

if TYPE_CHECKING:
    from fedctl.transports.client import Client


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
        self._beginning = threading.Lock()

    def to(self, node: Node) -> Transport:
        """The way to that node; raises ConfigError where ~/.ssh/config or fed.yaml asks for what cannot be had."""
        if node.host == "local":
            from fedctl.transports.local import LocalTransport

            return LocalTransport()
        from fedctl.transports.ssh import SshTransport, lookup, new_client  # paramiko is slow to import
        from fedctl.transports.sshconfig import resolve

        with self._beginning:
            self._client = self._client or new_client()
        return SshTransport(self._client, resolve(node, self._folder, lookup=lookup))

    def close(self) -> None:
        """Close what the ways shared."""
        if self._client is not None:
            self._client.close()
