"""The hosts of a federation: which nodes share a machine, a user and a Python, and so an agent and a worker."""

import hashlib
import math
import sys
from collections.abc import Callable, Container
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from fedctl.errors import FedctlError
from fedctl.federation import Federation, Node
from fedctl.host import Host, Work
from fedctl.pace import Bandwidth
from fedctl.records import COORDINATOR
from fedctl.transports import Transports

MOST_AT_ONCE = 512
"""How many hosts are asked at the same time: one that is away costs a timeout, and so do a hundred."""

Answer = TypeVar("Answer")


class Hosts:
    """The hosts of a federation, one for all nodes that share a machine, a user and a Python."""

    def __init__(self, federation: Federation, work: Work) -> None:
        self._transports = Transports(federation.folder)
        groups: dict[tuple[object, ...], list[Node]] = {}
        for node in (*federation.nodes, _COORDINATORS_OWN):
            groups.setdefault(node.address, []).append(node)
        lines = _lines(federation)
        ways = self._transports.to_each([nodes[0] for nodes in groups.values()])
        by_address = {
            address: Host(
                way,
                python=nodes[0].python or (sys.executable if nodes[0].host == "local" else "python3"),
                home=nodes[0].home or "",
                slots=max((node.slots or 0 for node in nodes), default=0),
                work=_on(nodes[0], work),
                environment=work.environments.get(nodes[0].name),
                bandwidth=lines.get(nodes[0].machine),
            )
            for way, (address, nodes) in zip(ways, groups.items(), strict=True)
        }
        self._by_address = by_address
        self._of = {node.name: by_address[node.address] for node in federation.nodes}
        self._of[_COORDINATORS_OWN.name] = by_address[_COORDINATORS_OWN.address]

    def of(self, node: str) -> Host:
        """The host of a node, or of the coordinator itself."""
        return self._of[node]

    def by_machine(self) -> dict[str, Host]:
        """Each distinct host once, under a name for people: its address, and its Python where there are several."""
        machines: dict[str, Host] = {}
        for address, host in self._by_address.items():
            parts = [str(part) for part in address if part is not None]
            name = parts[0] if parts[0] not in machines else ", ".join(parts)
            machines[name if name not in machines else f"{name}, {sys.executable}"] = host
        return machines

    def each(
        self, action: Callable[[Host], Answer], *, among: Container[str] | None = None
    ) -> dict[str, Answer | FedctlError]:
        """What an action gives on every host, all at once, by machine; the error itself where it fails.

        `among` are the machines that are meant, all by default.
        """

        def tolerant(host: Host) -> Answer | FedctlError:
            try:
                return action(host)
            except FedctlError as error:
                return error

        machines = {name: host for name, host in self.by_machine().items() if among is None or name in among}
        with ThreadPoolExecutor(max_workers=max(1, min(MOST_AT_ONCE, len(machines)))) as pool:
            return dict(zip(machines, pool.map(tolerant, machines.values()), strict=True))

    def close(self) -> None:
        for host in self._by_address.values():
            host.close()
        self._transports.close()


_COORDINATORS_OWN = Node(name=COORDINATOR, host="local")


def _lines(federation: Federation) -> dict[tuple[object, ...], Bandwidth]:
    """The limits of machines that have one: of the nodes on a machine the narrowest counts for all lines to it."""
    limits: dict[tuple[object, ...], float] = {}
    for node in federation.nodes:
        if node.bandwidth_bps is not None:
            limits[node.machine] = min(node.bandwidth_bps, limits.get(node.machine, math.inf))
    return {machine: Bandwidth(bps) for machine, bps in limits.items()}


def _on(node: Node, work: Work) -> Work:
    """The run's work as it is on that node's machine: a path of this one means nothing on another."""
    cwd = work.cwd if node.host == "local" else "~"
    return replace(work, identity=_identity(work.identity, node), cwd=cwd)


def _identity(run: str, node: Node) -> str:
    """A run has a worker for each Python on a machine, and so a folder of its own there for each."""
    kinds = [kind for kind in (node.python, node.wheelhouse) if kind is not None]
    return f"{run}-{hashlib.sha256(' '.join(kinds).encode()).hexdigest()[:8]}" if kinds else run
