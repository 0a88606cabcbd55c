"""Beds of real SSH servers for the tests of this folder, and federations whose nodes are on them."""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedctl.federation import Node
from fedctl.transports import Transports
from tests.bed import Bed, LoopbackBed, open_bed, which
from tests.e2e.conftest import Place, make_place

__all__ = ["make_place"]


def pytest_report_collectionfinish() -> str:
    return which()


@pytest.fixture(scope="session")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackBed]:
    """Loopback nodes for the session; a test adds what it needs, under names of its own."""
    with LoopbackBed(tmp_path_factory.mktemp("bed") / "loopback") as bed:
        yield bed


@pytest.fixture
def fragile_bed(tmp_path: Path) -> Iterator[Bed]:
    """A bed of the test's own, whose lines may be cut."""
    with open_bed(tmp_path / "bed") as bed:
        yield bed


@pytest.fixture
def relayed_bed(tmp_path: Path) -> Iterator[LoopbackBed]:
    """A bed of the test's own with a relay before each node."""
    with LoopbackBed(tmp_path / "relayed", relayed=True) as bed:
        yield bed


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch) -> Callable[[Bed], Bed]:
    """This process lives in a bed's home: its ~/.ssh, and no agent."""

    def move_in(bed: Bed) -> Bed:
        monkeypatch.setenv("HOME", str(bed.home))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        return bed

    return move_in


@pytest.fixture
def open_on(tmp_path):
    """Start a command on a host that ~/.ssh/config knows, with the fields of a node; all lines close after the test."""
    transports = Transports(tmp_path)

    def open_on(host, *argv, **fields):
        return transports.to(Node(name="node", host=host, **fields)).open(argv)

    yield open_on
    transports.close()


@pytest.fixture
def said(open_on):
    """What a command on a host prints."""

    def said(host, *argv, **fields):
        process = open_on(host, *argv, **fields)
        process.close_stdin()
        printed = process.read(2**20)
        assert process.wait() == 0, process.errors()
        return printed.decode()

    return said


@pytest.fixture
def home(bed, at_home):
    """The session's bed, and this process at its client's home."""
    return at_home(bed)


@pytest.fixture(scope="session")
def plain(bed):
    return bed.add("plain")


@dataclass(frozen=True)
class SshPlace(Place):
    """A federation's folder whose user lives at the bed's client, and whose nodes are some of the bed's."""

    bed: Bed = field(kw_only=True)

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **self.bed.environment, "FEDCTL_HOME": str(self.home)}

    def put_on_bed(self, *names: str) -> None:
        """Keep those nodes of a template's fed.yaml, each on the host of its name, in the environment of the tests."""
        file = self.folder / "fed.yaml"
        head, nodes = file.read_text().split("nodes:", 1)
        lines = [line for line in nodes.splitlines() if any(f"name: {name}," in line for name in names)]
        hosts = [
            re.sub(r"name: (\w+), host: local", rf"name: \1, host: \1, python: {sys.executable}", x) for x in lines
        ]
        file.write_text("\n".join([f"{head}nodes:", *hosts, ""]))

    def left_on_nodes(self) -> list[int]:
        """What sessions started and still lives, on any node."""
        return [pid for server in self.bed.nodes.values() for pid in server.started()]
