"""Nodes on ports of this machine's loopback: sshds that any user may run."""

import contextlib
import random
import socket
from pathlib import Path
from typing import Any

from tests.bed.bed import Bed
from tests.bed.relay import Relay
from tests.bed.server import Server


class LoopbackBed(Bed):
    """`relayed` puts a relay before each node (`server.relay`), so that lines can be cut, slowed and broken."""

    def __init__(self, folder: Path, *, relayed: bool = False) -> None:
        super().__init__(folder)
        self._relayed = relayed

    def cut(self, server: Server) -> None:
        self.relay(server).cut()

    def heal(self, server: Server) -> None:
        self.relay(server).heal()

    def slow(self, server: Server, rate: float) -> None:
        self.relay(server).shape(rate=rate)

    def relay(self, server: Server) -> Relay:
        """The relay before a node of a relayed bed."""
        assert server.relay is not None, "this bed has no relays"
        return server.relay

    def _make(self, name: str, options: dict[str, Any]) -> Server:
        address = options.pop("address", "127.0.0.1")
        server = Server(name, self.folder / name, address=address, port=_free_port(address), **options)
        if self._relayed:
            server.relay = Relay(address, server.port)
            server.address, server.port = "127.0.0.1", server.relay.port
        return server

    def _take_down(self, server: Server) -> None:
        super()._take_down(server)
        if server.relay is not None:
            server.relay.close()


def _free_port(address: str) -> int:
    """A port below those that the kernel hands out to clients, who might take it before sshd does."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    while True:
        port = random.randrange(10000, 32000)
        with contextlib.suppress(OSError), socket.create_server((address, port), family=family):
            return port
