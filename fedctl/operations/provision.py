"""`fedctl provision`: the bundle and an environment on every node, made where they are missing."""

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fedctl import bundle, topology
from fedctl.environment import environments
from fedctl.errors import NodeError
from fedctl.host import Host, Work
from fedctl.hosts import Hosts
from fedctl.preparation import Prepared
from fedctl.records import Blob

AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one node: how it was made ready, or why it could not be; `detail` is an installer's last lines."""

    prepared: Prepared | None = None
    error: str = ""
    remedy: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioned:
    """What was done, by node; `left_out` is what looks like code and did not travel, with the number of files."""

    federation: str
    left_out: Mapping[str, int]
    nodes: Mapping[str, Outcome]

    @property
    def failed(self) -> bool:
        return any(one.prepared is None for one in self.nodes.values())

    @property
    def changed(self) -> bool:
        """True where anything had to be done."""
        return any(one.prepared is not None and one.prepared.is_new for one in self.nodes.values())


def provision(path: Path, overrides: Sequence[str] = (), *, told: Callable[[str, str], None]) -> Provisioned:
    """Make all nodes ready, at once; `told` hears what goes on at which nodes, from several threads.

    Raises ConfigError before anything is touched.
    """
    federation = topology.load(path, overrides)
    needed = environments(federation)
    content = bundle.pack(federation)
    with tempfile.NamedTemporaryFile(prefix="fedctl-") as file:
        file.write(content)
        file.flush()
        work = Work(
            run="provision",
            identity="provision",
            bundle=Blob(digest=hashlib.sha256(content).hexdigest(), size=len(content)),
            bundle_path=Path(file.name),
            preload=(),
            cwd=str(federation.folder),
            environments=needed,
        )
        hosts = Hosts(federation, work)
        names: dict[Host, list[str]] = {}
        for node in federation.nodes:
            names.setdefault(hosts.of(node.name), []).append(node.name)
        try:
            with ThreadPoolExecutor(max_workers=min(AT_ONCE, len(names))) as pool:
                outcomes = dict(
                    zip(names, pool.map(lambda host: _provide(host, names[host], told), names), strict=True)
                )
        finally:
            hosts.close()
    return Provisioned(
        federation=federation.name,
        left_out=bundle.left_out(federation.folder),
        nodes={node.name: outcomes[hosts.of(node.name)] for node in federation.nodes},
    )


def _provide(host: Host, names: Sequence[str], told: Callable[[str, str], None]) -> Outcome:
    label = ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"
    told(label, "connecting")
    try:
        prepared = host.provide(lambda line: told(label, line))
    except NodeError as error:
        told(label, f"failed: {error.message}")
        return Outcome(error=error.message, remedy=error.hint or "", detail=getattr(error, "detail", ""))
    told(label, "ready")
    return Outcome(prepared=prepared)
