"""`fedctl check --accept-new`: host keys that are unknown are shown, asked about, and kept beside fed.yaml."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fedctl.errors import HostKeyError, NodeError, OfferedKey
from fedctl.federation import Node
from fedctl.host import Host
from fedctl.hosts import MOST_AT_ONCE
from fedctl.transports import known_hosts


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """A host key that nobody vouches for yet, and the nodes that lie behind it."""

    key: OfferedKey
    nodes: tuple[str, ...]


Ask = Callable[[Sequence[Unknown]], bool]
"""Shows the keys to somebody; true where all of them are right."""


def accept(hosts: Mapping[Host, Sequence[Node]], file: Path, ask: Ask) -> dict[Host, NodeError]:
    """Connect to all, and have the keys that are unknown accepted into `file`; returns why the others stay away.

    What lies behind a bastion is seen when the bastion's key is known, so it may ask more than once.
    """
    failures = _connect(hosts)
    shown: set[OfferedKey] = set()
    while True:
        nodes: dict[OfferedKey, list[str]] = {}
        for host, error in failures.items():
            if (key := _offered(error)) and key not in shown:
                nodes.setdefault(key, []).extend(node.name for node in hosts[host])
        shown |= nodes.keys()
        if not nodes or not ask([Unknown(key=key, nodes=tuple(names)) for key, names in nodes.items()]):
            return failures
        for key in nodes:
            known_hosts.accept(file, key.name, known_hosts.HostKey.of(key))
        known = {host for host, error in failures.items() if _offered(error) in nodes}
        failures = {host: error for host, error in failures.items() if host not in known} | _connect(known)


def _offered(error: NodeError) -> OfferedKey | None:
    return error.offered if isinstance(error, HostKeyError) else None


def _connect(hosts: Iterable[Host]) -> dict[Host, NodeError]:
    """Connect to all of them at once; returns the failures."""

    def attempt(host: Host) -> NodeError | None:
        try:
            host.connection()
        except NodeError as error:
            return error
        return None

    every = list(hosts)
    with ThreadPoolExecutor(max_workers=max(1, min(MOST_AT_ONCE, len(every)))) as pool:
        return {host: error for host, error in zip(every, pool.map(attempt, every), strict=True) if error}
