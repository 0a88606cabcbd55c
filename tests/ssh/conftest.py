"""Beds of real SSH servers for the tests of this folder."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bed import Bed, LoopbackBed, open_bed, which


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
