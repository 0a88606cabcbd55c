"""The power is cut: of what the coordinator wrote, only what it synced is left, and the run comes to the same end.

`Disk` takes down every `os.fsync`: what a file held then, or which names a folder had. `lose` leaves just that.
"""

import os
import random
import re
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl import durable, takeup
from fedctl.errors import StateError
from fedctl.events import Event, ModelInitialized, RoundOpened, UpdateLost, UpdateReceived
from fedctl.journal import Journal
from fedctl.runstate import RunState
from tests.scenario.calm import assert_calm_end, scene, went_on
from tests.scenario.world import Killed, Killer, Scene, Watch, dying, federation, of_kind

MOST_EVENTS = 45
NODES = "nodes"
"""The folder of a scene that stands for the nodes' own disks."""


class Disk:
    """A folder, and what of it would outlive a power cut. Inodes stay open, so that no number is used twice."""

    def __init__(self, root: Path) -> None:
        """What is there already is there for good."""
        self._root = root
        self._is_on = True
        self._guard = threading.Lock()
        self._opened: dict[int, int] = {}
        self._bytes: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        for path in (root, *root.rglob("*")):
            if not path.is_symlink() and NODES not in path.parts:
                file = os.open(path, os.O_RDONLY)
                self.sync(file)
                os.close(file)

    def sync(self, file: int) -> None:
        """Stands for `os.fsync`."""
        with self._guard:
            if not self._is_on:
                return
            inode = self._keep(Path(f"/proc/self/fd/{file}"), follow=True)
            if stat.S_ISDIR(os.fstat(file).st_mode):
                self._names[inode] = self._listed(inode)
            else:
                self._bytes[inode] = self._read(inode)

    def cut(self) -> None:
        """From here on nothing reaches the disk."""
        self._is_on = False

    def lose(self, luck: random.Random | None = None) -> None:
        """Leave what was synced, and with `luck` a part of the rest, as the kernel happened to write it out."""
        inode = self._keep(self._root)
        tree = self._left(inode, luck, top=True)
        for path in self._root.iterdir():
            if path.name != NODES:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        _build(self._root, tree)

    def close(self) -> None:
        for file in self._opened.values():
            os.close(file)

    def _left(self, inode: int, luck: random.Random | None, *, top: bool = False) -> dict[str, Any]:
        synced, now = self._names.get(inode, {}), self._listed(inode)
        tree: dict[str, Any] = {}
        for name in sorted({*synced, *now}):
            chosen = now if luck and luck.random() < 0.5 else synced
            if name in chosen and not (top and name == NODES):
                mode = os.fstat(self._opened[chosen[name]]).st_mode
                if stat.S_ISDIR(mode):
                    tree[name] = self._left(chosen[name], luck)
                elif stat.S_ISLNK(mode):
                    tree[name] = os.readlink("", dir_fd=self._opened[chosen[name]])
                else:
                    tree[name] = self._left_bytes(chosen[name], luck)
        return tree

    def _left_bytes(self, inode: int, luck: random.Random | None) -> bytes:
        synced = self._bytes.get(inode, b"")
        if luck is None:
            return synced
        now = self._read(inode)
        size = luck.randint(min(len(synced), len(now)), len(now))
        zeros = bytes(len(now) - min(len(synced), len(now)))
        return luck.choice([synced, now, now[:size], synced + zeros])

    def _listed(self, inode: int) -> dict[str, int]:
        names = {}
        for path in Path(f"/proc/self/fd/{self._opened[inode]}").iterdir():
            with suppress(FileNotFoundError):  # a thread of the coordinator's has just renamed it
                names[path.name] = self._keep(path)
        return names

    def _keep(self, path: Path, *, follow: bool = False) -> int:
        file = os.open(path, os.O_PATH | (0 if follow else os.O_NOFOLLOW))
        inode = os.fstat(file).st_ino
        if inode in self._opened:
            os.close(file)
        else:
            self._opened[inode] = file
        return inode

    def _read(self, inode: int) -> bytes:
        return Path(f"/proc/self/fd/{self._opened[inode]}").read_bytes()


def _build(folder: Path, tree: dict[str, Any]) -> None:
    for name, content in tree.items():
        match content:
            case dict():
                (folder / name).mkdir()
                _build(folder / name, content)
            case str():
                (folder / name).symlink_to(content)
            case _:
                (folder / name).write_bytes(content)


@contextmanager
def powered(root: Path) -> Iterator[Disk]:
    """The folder on a disk of its own, until the power is cut at the end, or before."""
    disk = Disk(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", disk.sync)
        yield disk
    disk.cut()


def cutting(disk: Disk, after: int, torn: float = 0.0) -> type[Journal]:
    """A journal with whose `after`th event the power is cut."""

    class Cutting(dying(after, torn)):
        def append(self, batch):
            try:
                super().append(batch)
            except Killed:
                disk.cut()
                raise

    return Cutting


class Cut(Killer):
    """A sink at whose `nth` event the power is cut: it is written down, and nothing has followed from it."""

    def __init__(self, disk: Disk, nth: int) -> None:
        super().__init__(nth)
        self._disk = disk

    def event(self, event: Event, state: RunState) -> None:
        try:
            super().event(event, state)
        except Killed:
            self._disk.cut()
            raise


def assert_same_end(made: Scene) -> None:
    assert_calm_end(made, went_on(made))


# What a disk is here


def test_a_disk_keeps_what_was_synced_under_the_names_that_were(tmp_path):
    with powered(tmp_path) as disk:
        for name in ("never", "unnamed", "whole", "grown", "old"):
            (tmp_path / name).write_bytes(b"1")
        for name in ("whole", "grown", "old"):
            synced(tmp_path / name)
        synced(tmp_path)
        (tmp_path / "new").write_bytes(b"2")
        synced(tmp_path / "new")
        (tmp_path / "new").rename(tmp_path / "old")
        (tmp_path / "grown").write_bytes(b"12")
        (tmp_path / "late").write_bytes(b"1")
        synced(tmp_path / "late")
    disk.lose()
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left == {"never": b"", "unnamed": b"", "whole": b"1", "grown": b"1", "old": b"1"}
    disk.close()


def synced(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.close(file)


# Whole runs


@pytest.mark.parametrize("nth", range(MOST_EVENTS))
def test_the_power_is_cut_once_what_was_done_is_ahead_of_the_journal(nth, tmp_path):
    with powered(tmp_path) as disk:
        made = scene(tmp_path)
        made.dies(writer=cutting(disk, nth, torn=0.5))
    disk.lose()
    assert_same_end(made)
    disk.close()


@pytest.mark.parametrize("nth", range(1, MOST_EVENTS))
def test_the_power_is_cut_once_an_event_is_written_and_nothing_has_followed(nth, tmp_path):
    with powered(tmp_path) as disk:
        made = scene(tmp_path)
        made.dies(Cut(disk, nth))
    disk.lose()
    assert len(made.events) >= nth or made.state.status == "finished"
    assert_same_end(made)
    disk.close()


@given(
    cuts=st.lists(st.tuples(st.sampled_from(["journal", "sink"]), st.integers(0, 40), st.floats(0, 1)), max_size=4),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_power_is_cut_at_random_and_some_of_what_was_not_synced_is_there(cuts, seed):
    luck = random.Random(seed)
    with TemporaryDirectory() as name:
        made = None
        for way, nth, torn in cuts:
            with powered(Path(name)) as disk:
                made = made or scene(Path(name), jitter=seed)
                if made.state.status != "finished":
                    if way == "sink":
                        made.dies(Cut(disk, nth + 1))
                    else:
                        made.dies(writer=cutting(disk, nth, torn))
            disk.lose(luck)
            disk.close()
        assert_same_end(made or scene(Path(name)))


def test_a_first_model_that_is_journalled_is_published_for_good(tmp_path):
    def at_the_first_model(event):
        if isinstance(event, ModelInitialized):
            disk.cut()
            raise Killed

    with powered(tmp_path) as disk:
        made = scene(tmp_path)
        assert made.dies(Watch(at_the_first_model))
    disk.lose()
    assert isinstance(made.events[-1], ModelInitialized)
    assert durable.digest(made.run.model) == made.state.model == durable.digest(made.run.round_model(0))
    disk.close()


# Updates, which are not synced


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("kind", ["train", "alone"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b""), zero])
def test_an_update_that_is_damaged_is_asked_for_again_and_not_trained_again(kind, damage, tmp_path):
    made = scene(tmp_path)
    assert made.dies(once_received(kind))
    key = [event.task for event in made.events if isinstance(event, UpdateReceived)][-1]
    damage(made.run.answer(key))
    assert_same_end(made)
    (lost,) = of_kind(made.events, UpdateLost)
    assert lost.task == key
    assert [event.task for event in of_kind(made.events, UpdateReceived)].count(key) == 2


def test_updates_that_are_whole_are_not_asked_for_again(tmp_path):
    made = scene(tmp_path)
    assert made.dies(once_received("train"))
    assert takeup.damaged(made.run, made.state) == []
    made.go()
    assert of_kind(made.events, UpdateLost) == []


def test_a_round_whose_nodes_gave_their_updates_to_an_earlier_coordinator_is_tidied_up_on_them(tmp_path):
    made = Scene(tmp_path, federation("alice", "bob", rounds=1))
    assert made.dies(once_received("train"))
    made.go()
    kept = [key for key, work in made.world.works.items() if key.kind == "train" and work.update is not None]
    assert kept == []


def once_received(kind: str) -> Watch:
    """A sink that dies once an update of a kind of task is written down."""

    def at(event: Event) -> None:
        if isinstance(event, UpdateReceived) and event.task.kind == kind:
            raise Killed

    return Watch(at)


def test_the_scene_has_a_round_to_lose(tmp_path):
    made = scene(tmp_path)
    made.go()
    assert 35 < len(made.events) < MOST_EVENTS
    assert len(of_kind(made.events, RoundOpened)) == 2


# A journal that is damaged


@pytest.mark.parametrize("line", [1, 9, 20, 33])
def test_a_journal_that_is_damaged_is_cut_as_the_hint_says_and_the_run_comes_to_the_same_end(line, tmp_path):
    made = scene(tmp_path)
    made.go()
    lines = made.run.journal.read_bytes().splitlines(keepends=True)
    lines[line - 1] = b"?" + lines[line - 1]
    made.run.journal.write_bytes(b"".join(lines))
    with pytest.raises(StateError, match=rf":{line}: the journal is damaged") as caught:
        made.go()
    (command,) = re.findall(r"`(sed [^`]*)`", caught.value.hint)
    subprocess.run(command, shell=True, check=True)
    assert len(made.events) == line - 1
    assert made.run.journal.with_name("events.jsonl.damaged").read_bytes() == b"".join(lines)
    assert_same_end(made)
