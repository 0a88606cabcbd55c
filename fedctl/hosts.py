"""The hosts of a federation: which nodes share a machine, a user and a Python, and so an agent and a worker."""

import hashlib
import sys
from dataclasses import replace

from fedctl.federation import Federation, Node
from fedctl.host import Host, Work
from fedctl.records import COORDINATOR
from fedctl.transports import transport_to


class Hosts:
    """The hosts of a federation, one for all nodes that share a machine, a user and a Python."""

    def __init__(self, federation: Federation, work: Work) -> None:
        groups: dict[tuple[object, ...], list[Node]] = {}
        for node in (*federation.nodes, _COORDINATORS_OWN):
            groups.setdefault(_address(node), []).append(node)
        by_address = {
            address: Host(
                transport_to(nodes[0]),
                python=nodes[0].python or sys.executable,
                slots=max((node.slots or 0 for node in nodes), default=0),
                work=replace(work, identity=_identity(work.identity, nodes[0].python)),
            )
            for address, nodes in groups.items()
        }
        self._by_address = by_address
        self._of = {node.name: by_address[_address(node)] for node in federation.nodes}
        self._of[_COORDINATORS_OWN.name] = by_address[_address(_COORDINATORS_OWN)]

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

    def close(self) -> None:
        for host in self._by_address.values():
            host.close()


_COORDINATORS_OWN = Node(name=COORDINATOR, host="local")


def _identity(run: str, python: str | None) -> str:
    """A run has a worker for each Python on a machine, and so a folder of its own there for each."""
    return run if python is None else hashlib.sha256(f"{run} {python}".encode()).hexdigest()[:32]


def _address(node: Node) -> tuple[object, ...]:
    return (node.host, node.user, node.port, node.key, node.jump, node.python)
