"""The family of transports: ways to run a command on a node with its stdin, stdout, stderr and exit status.

Nothing more is asked of one, so a new one is a small file here and a line in `transport_to`.
"""

from collections.abc import Sequence
from typing import Protocol

from fedctl.errors import ConfigError
from fedctl.federation import Node


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


def transport_to(node: Node) -> Transport:
    """The way to that node."""
    if node.host == "local":
        from fedctl.transports.local import LocalTransport

        return LocalTransport()
    raise ConfigError(
        f"node {node.name}: no transport of this version reaches the host {node.host}",
        hint="use `host: local`",
    )
