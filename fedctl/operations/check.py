"""`fedctl check`: is every node fit for its task? Looks, and changes nothing."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedctl import topology
from fedctl.errors import ConfigError, NodeError
from fedctl.federation import Federation, Node
from fedctl.host import Host, Work
from fedctl.hosts import Hosts
from fedctl.operations.rehearsal import rehearse
from fedctl.records import Blob
from fedctl.strategies import build

PACKAGES = ("torch", "pytorch-lightning", "lightning", "safetensors", "numpy")
LEAST_DISK = 1 << 30
LEAST_MEMORY = 2 << 30
MOST_SKEW_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at; `remedy` says what to do where it did not pass."""

    name: str
    passed: bool
    value: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """All findings: of the user's code, and of each node."""

    federation: str
    code: Finding
    nodes: Mapping[str, tuple[Finding, ...]]

    @property
    def passed(self) -> bool:
        return self.code.passed and all(finding.passed for found in self.nodes.values() for finding in found)


def check(path: Path, overrides: Sequence[str] = ()) -> Checked:
    """Look at the code and at all nodes, these all at once; raises ConfigError for a fed.yaml that cannot be read."""
    federation = topology.load(path, overrides)
    build(federation.strategy, folder=federation.folder)
    work = Work(
        run="check",
        identity="check",
        bundle=Blob(digest="0" * 64, size=0),
        bundle_path=path,
        preload=(),
        cwd=str(federation.folder),
    )
    hosts = Hosts(federation, work)
    try:
        with ThreadPoolExecutor(max_workers=min(64, len(federation.nodes) + 1)) as pool:
            code = pool.submit(_check_code, federation)
            found = pool.map(lambda node: (node.name, tuple(_check_node(hosts.of(node.name), node))), federation.nodes)
            return Checked(federation=federation.name, nodes=dict(found), code=code.result())
    finally:
        hosts.close()


def _check_code(federation: Federation) -> Finding:
    try:
        model = rehearse(federation)
    except (ConfigError, NodeError) as error:
        return Finding(name="code", passed=False, value=error.message, remedy=error.hint or "")
    return Finding(name="code", passed=True, value=f"builds a model of {model.size:,} bytes")


def _check_node(host: Host, node: Node) -> Iterator[Finding]:
    try:
        asked = time.time()
        facts = host.facts()
        skew = float(facts["time"]) - (asked + time.time()) / 2
    except NodeError as error:
        remedy = error.hint or f"does `{node.python or 'python3'}` run on {node.host}?"
        yield Finding(name="reach", passed=False, value=error.message, remedy=remedy)
        return
    yield Finding(name="reach", passed=True, value=f"{facts['hostname']}, {facts['system']}")
    yield from _packages(host, node)
    memory, disk = int(facts["memory"]), int(facts["disk_free"])
    yield Finding(
        name="memory",
        passed=memory >= LEAST_MEMORY,
        value=f"{memory / 2**30:.0f} GB, {facts['cpus']} cores",
        remedy="torch and Lightning want 2 GB at least",
    )
    yield Finding(
        name="disk",
        passed=disk >= LEAST_DISK,
        value=f"{disk / 2**30:.0f} GB free",
        remedy=f"make room below {facts['home']}",
    )
    yield Finding(
        name="clock",
        passed=abs(skew) <= MOST_SKEW_S,
        value="in step" if abs(skew) < 1 else f"{skew:+.0f} s",
        remedy="let the node keep its clock by NTP; fedctl itself counts on the coordinator's alone",
    )


def _packages(host: Host, node: Node) -> Iterator[Finding]:
    try:
        found: Mapping[str, Any] = host.probe(PACKAGES)
    except NodeError as error:
        yield Finding(name="python", passed=False, value=error.message, remedy=f"correct `python:` of node {node.name}")
        return
    version = str(found["python"])
    recent = tuple(int(part) for part in version.split(".")[:2]) >= (3, 10)
    yield Finding(name="python", passed=recent, value=version, remedy="name a Python of 3.10 or newer in `python:`")
    packages = found["packages"]
    missing = [name for name in ("torch", "safetensors", "numpy") if not packages.get(name)]
    if not (packages.get("pytorch-lightning") or packages.get("lightning")):
        missing.append("pytorch-lightning")
    present = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    yield Finding(
        name="packages",
        passed=not missing,
        value=present if not missing else f"without {', '.join(missing)}",
        remedy=f"`{node.python or 'python'} -m pip install {' '.join(missing)}`",
    )
