"""`fedctl check`: is every node fit for its task? Looks, and changes nothing."""

import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedctl import bundle, topology
from fedctl.environment import Environment, Given, environments, is_recent
from fedctl.errors import ConfigError, ConnectionLost, NodeError
from fedctl.federation import Federation, Node, When
from fedctl.host import Host, Work
from fedctl.hosts import MOST_AT_ONCE, Hosts
from fedctl.node.agent import MOST_PATHS
from fedctl.operations import findings, owned
from fedctl.operations.accepting import Ask, accept
from fedctl.operations.algorithm import affordable_algorithm
from fedctl.operations.findings import Finding
from fedctl.operations.rehearsal import FirstModel, rehearse
from fedctl.records import Blob
from fedctl.transports.sshconfig import KNOWN_HOSTS

ENVIRONMENT_SIZE, CUDA_ENVIRONMENT_SIZE = 1_500_000_000, 6_000_000_000
"""About what torch and Lightning take on a disk, without and with what a GPU needs."""

Told = Callable[[int, int], None]
"""Is told how many nodes have been looked at, and of how many."""
Request = Callable[..., dict[str, Any]]
"""Asks a node's agent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """All findings: of the user's code, and of each node."""

    federation: str
    code: Finding
    nodes: Mapping[str, tuple[Finding, ...]]

    @property
    def passed(self) -> bool:
        return self.code.passed and all(finding.passed for found in self.nodes.values() for finding in found)


def check(
    path: Path, overrides: Sequence[str] = (), *, told: Told = lambda _done, _all: None, ask: Ask | None = None
) -> Checked:
    """Look at the code and at all nodes, these all at once; raises ConfigError for a fed.yaml that cannot be read.

    With `ask`, host keys that are unknown are accepted where it says so.
    """
    federation = topology.load(path, overrides)
    affordable_algorithm(federation, path, overrides)
    work = work_of(federation)
    hosts = Hosts(federation, work)
    groups: dict[Host, list[Node]] = {}
    for node in federation.nodes:
        groups.setdefault(hosts.of(node.name), []).append(node)
    found: dict[str, tuple[Finding, ...]] = {}
    try:
        told(0, len(federation.nodes))
        failures = accept(groups, federation.folder / KNOWN_HOSTS, ask) if ask else {}
        with ThreadPoolExecutor(max_workers=min(MOST_AT_ONCE, len(groups)) + 1) as pool:
            model = pool.submit(rehearse, federation)
            looks = [
                pool.submit(_Look(federation, work, nodes, model).at, host, failures.get(host))
                for host, nodes in groups.items()
            ]
            for look in as_completed(looks):
                found.update(look.result())
                told(len(found), len(federation.nodes))
            return Checked(
                federation=federation.name,
                code=_code(model),
                nodes={node.name: found[node.name] for node in federation.nodes},
            )
    finally:
        hosts.close()


def work_of(federation: Federation) -> Work:
    """What a run would ask of its hosts now; raises ConfigError for code that cannot travel."""
    content = bundle.pack(federation)
    return Work(
        run="check",
        identity="check",
        bundle=Blob(digest=hashlib.sha256(content).hexdigest(), size=len(content)),
        bundle_path=federation.folder,
        preload=(),
        cwd=str(federation.folder),
        environments=environments(federation),
    )


def _code(model: Future[FirstModel]) -> Finding:
    try:
        size = model.result().size
    except (ConfigError, NodeError) as error:
        return Finding(name="code", passed=False, value=error.message, remedy=error.hint or "")
    return Finding(name="code", passed=True, value=f"builds a model of {size:,} bytes")


@dataclass(frozen=True, slots=True)
class _Look:
    """A look at one machine for its nodes."""

    federation: Federation
    work: Work
    nodes: Sequence[Node]
    model: Future[FirstModel]

    def at(self, host: Host, failure: NodeError | None) -> dict[str, tuple[Finding, ...]]:
        """The findings by node; `failure` is why the machine is known not to be reached."""
        try:
            if failure:
                raise failure
            return self._look(host)
        except NodeError as error:
            return {node.name: tuple(findings.unreached(node, error)) for node in self.nodes}
        finally:
            host.close()

    def _look(self, host: Host) -> dict[str, tuple[Finding, ...]]:
        first = self.nodes[0]
        connection = host.connection()
        began = time.time()
        facts = host.facts()
        skew_s = findings.number(facts, "time") - (began + time.time()) / 2
        environment = self.work.environments.get(first.name) or Given(python=sys.executable)
        needs = {"bundle": self.work.bundle.digest, **environment.needs()}
        stand = connection.ask("hello", needs=needs).get("has")
        stand = stand if isinstance(stand, Mapping) else {}
        interpreter = _interpreter(environment, stand)
        wanted = any(node.accelerator in ("gpu", "mps") for node in self.nodes)
        cards = connection.ask("accelerators", **interpreter, wanted=wanted)
        paths = {node.name: dict(_paths(self.federation, node)) for node in self.nodes}
        seen = _looked_up(connection.ask, {path for named in paths.values() for path in named.values()})
        trial = self._try(connection.ask, first, interpreter)
        making = _making(environment, stand, cards)
        machine = (
            *findings.reached(first, facts, connection.noise),
            *findings.python(first, environment, stand),
            *findings.room(facts, self._needed(making), making),
            *owned.enrolment(first, facts, stand, self.federation.privacy),
        )
        return {
            node.name: (
                *machine,
                findings.accelerator(node, facts, cards),
                findings.clock(skew_s),
                owned.data(list(paths[node.name]), [seen[path] for path in paths[node.name].values()]),
                *([findings.when(_asked(connection.ask, node.when))] if node.when else []),
                trial,
            )
            for node in self.nodes
        }

    def _try(self, ask: Request, node: Node, interpreter: Mapping[str, Any]) -> Finding:
        """The import of the user's code; in the coordinator's own environment the first model is the proof of it."""
        if node.host == "local" and node.python is None:
            return Finding(name="import", passed=True, value="as your code here")
        files = dict.fromkeys(target.partition(":")[0] for target in self.federation.task.targets)
        modules = [file.removesuffix(".py").replace("/", ".") for file in files]
        answer = ask("trial", **interpreter, bundle=self.work.bundle.digest, modules=modules)
        return findings.trial(answer, bundle.explain_missing(self.federation.folder, str(answer.get("failure"))))

    def _needed(self, making: int) -> int:
        """Bytes that the run needs on this machine's disk at the most, but for what the user's code writes."""
        try:
            model = self.model.result().size
        except (ConfigError, NodeError):
            model = 0
        alone = len(self.federation.nodes) if self.federation.compare else 0
        models = 2 + alone + len(self.nodes)  # the newest and the one before it, those to compare, an update each
        return model * models + 2 * self.work.bundle.size + making


def _interpreter(environment: Environment | Given, stand: Mapping[str, Any]) -> dict[str, Any]:
    """The Python that tasks would run in, as the agent is told; nothing where there is none that would do."""
    match environment, stand:
        case Environment(), {"environment": {"digest": str(digest), "ready": True}}:
            return {"environment": digest}
        case Given(), {"python": {"python": str(version)}} if is_recent(version):
            return {"python": environment.python}
        case _:
            return {}


def _making(environment: Environment | Given, stand: Mapping[str, Any], cards: Mapping[str, Any]) -> int:
    """Bytes for an environment that is still to be made."""
    match environment, stand:
        case Environment(), {"environment": {"ready": False}}:
            return CUDA_ENVIRONMENT_SIZE if cards.get("gpus") else ENVIRONMENT_SIZE
        case _:
            return 0


def _paths(federation: Federation, node: Node) -> Iterator[tuple[str, str]]:
    """The paths among the arguments of a node's data module, as they are written and as the node would open them.

    A text is taken for a path by its beginning; a relative one only on this machine, where it means the folder of
    fed.yaml.
    """
    for text in _texts({**federation.task.data_args, **node.data}):
        if text.startswith(("/", "~/")):
            yield text, text
        elif text.startswith(("./", "../")) and node.host == "local":
            yield text, str(federation.folder / text)


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Mapping():
            for item in value.values():
                yield from _texts(item)
        case list() | tuple():
            for item in value:
                yield from _texts(item)


def _asked(ask: Request, when: When) -> Mapping[str, Any]:
    """What the node says of being used now, or why it cannot say."""
    try:
        return ask("may", when=when.to_json())
    except ConnectionLost:
        raise
    except NodeError as error:
        return {"error": error.message}


def _looked_up(ask: Request, paths: set[str]) -> dict[str, object]:
    """What the node says of each path."""
    seen: dict[str, object] = {}
    ordered = sorted(paths)
    for begin in range(0, len(ordered), MOST_PATHS):
        some = ordered[begin : begin + MOST_PATHS]
        found = ask("look", paths=some).get("found")
        seen.update(zip(some, found if isinstance(found, list) else [], strict=False))
    return {path: seen.get(path) for path in paths}
