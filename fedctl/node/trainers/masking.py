"""A node's part in secure aggregation: its steps as tasks, and its update masked.

A node's secrets of a round are a file (0600) in the run's folder, written before any answer that follows from them
leaves. So a task that is asked again, by whomever and after whatever crash, gets the same answer; another is refused.
"""

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedctl.dp import distributed
from fedctl.dp.clipping import factor, norm_of
from fedctl.dp.noise import Generator
from fedctl.errors import ConfigError
from fedctl.header import TensorSpec
from fedctl.masked import VECTOR, Layout
from fedctl.node import keep
from fedctl.node.agent import Run, beside, remove, write_whole
from fedctl.node.bounds import Bounds
from fedctl.node.trainers import budget
from fedctl.node.trainers.handing import Handing
from fedctl.privacy import Privacy
from fedctl.records import Blob, Result, Task, TaskKey
from fedctl.secagg import node
from fedctl.secagg.keys import Identity, fingerprint, read_pins
from fedctl.secagg.messages import Agreement, Cohort, Inbox, Survivors
from fedctl.secagg.place import Place
from fedctl.secagg.secret import Secrets
from fedctl.strictjson import a_count, a_mapping, a_number
from fedctl.terms import terms_of
from fedctl.weights import digest, save

LEAST = 3
"""Of two nodes each learns the other's update from the sum."""


def step(task: Task, folder: Path) -> Result:
    """Do one of the steps beside the training; raises ConfigError where the node may not do what it is asked."""
    book = Book.of(task, folder)
    try:
        with book.held():
            return Result(key=task.key, message=_answer(task, book))
    except ValueError as error:
        raise ConfigError(f"secure aggregation: {error}") from error


def _answer(task: Task, book: "Book") -> dict[str, object]:
    match task.key.kind:
        case "keys":
            if not book.path.exists():
                book.turn_to(task.key.round)
                secrets, _ = node.advertise(book.identity(), book.place)
                book.write(secrets)
            return book.secrets().advert.to_json()
        case "shares":
            cohort = Cohort.from_json(task.message.get("cohort"))
            pins = book.pins(cohort)
            secrets, sealed = node.share(book.secrets(), cohort, least=book.least, pins=pins)
            book.pin(cohort)
            book.write(secrets)
            return sealed.to_json()
        case "agree":
            survivors = Survivors.from_json(task.message.get("survivors"))
            secrets, signed = node.survived(book.secrets(), book.identity(), survivors)
            book.write(secrets)
            return signed.to_json()
        case _:
            return node.unmask(book.secrets(), Agreement.from_json(task.message.get("agreement"))).to_json()


def prepare(task: Task, folder: Path) -> None:
    """Take what the neighbours shared, before the training.

    Raises ConfigError where the round is not in order, or the update's noise would spend more than the owner allows.
    """
    book = Book.of(task, folder)
    budget.noise_of_update(task, book.bounds)
    try:
        with book.held():
            book.write(node.receive(book.secrets(), Inbox.from_json(task.message.get("inbox"))))
    except ValueError as error:
        raise ConfigError(f"secure aggregation: {error}") from error


def earlier(task: Task, folder: Path) -> Result | None:
    """The answer of an earlier attempt at this round's training: an update is masked once, and never another."""
    book = Book.of(task, folder)
    if not book.masked.exists() or book.secrets().private is not None:
        return None
    told = json.loads(book.told.read_bytes())
    before = folder.parent / TaskKey.parse(told["task"]).folder
    for name in (keep.STATE, keep.OPTIMIZERS):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            (folder / name).hardlink_to(before / name)
    update = book.hand_out(folder)
    return Result(key=task.key, update=update, tensors=tuple(told["tensors"]), privacy=told["privacy"])


def masked(
    task: Task, handing: Handing, folder: Path, examples: int, spent: Mapping[str, float]
) -> tuple[Blob, Mapping[str, float]]:
    """Write the training's update as a masked row; the same file is handed out whenever it is asked for again.

    With what its noise spends: what the training has `spent`, or the row itself does by distributed noise.
    """
    privacy = Privacy.from_json(task.privacy)
    book = Book.of(task, folder)
    try:
        with book.held():
            secrets = book.secrets()
            cohort = _cohort(secrets)
            layout = layout_of(task, handing.expected, cohort)
            spent = budget.noise_of_update(task, book.bounds) or spent
            row = _row(handing, privacy, layout, cohort, examples)
            secrets = node.mask(secrets, row, terms_of(task, Run(folder.parent).bundle() or ""))
            save(book.masked, {VECTOR: torch.from_numpy(row)})
            told = {"task": str(task.key), "tensors": layout.names, "privacy": dict(spent)}
            write_whole(book.told, json.dumps(told).encode())
            book.write(secrets)
    except ValueError as error:
        raise ConfigError(f"secure aggregation: {error}") from error
    return book.hand_out(folder), spent


def _cohort(secrets: Secrets) -> Cohort:
    if secrets.cohort is None:
        raise ValueError("it has seen no cohort yet")
    return secrets.cohort


def layout_of(task: Task, spec: Mapping[str, TensorSpec], cohort: Cohort) -> Layout:
    """The layout of a round's rows, as far as the coordinator has a say in it; raises ValueError."""
    privacy = Privacy.from_json(task.privacy)
    secure = privacy.secure_aggregation
    if secure is None:
        raise AssertionError("asked to mask what is not")
    ranges = task.message.get("ranges")
    if ranges is not None:
        ranges = {name: a_number(number, name) for name, number in a_mapping(ranges, "ranges").items()}
    most = min(secure.examples, a_count(task.message.get("most"), "most"))
    if most < 1:
        raise ValueError("an update counts for one example at least")
    if privacy.is_counted_by_node and most != 1:
        raise ValueError("every update counts alike where the guarantee is about whole nodes")
    if privacy.mode == "distributed" and ranges is not None:
        raise ValueError("the noise is for one range, and this has one for each tensor")
    return Layout(spec=spec, cohort=len(cohort.adverts), range=secure.range, most=most, ranges=ranges)


def _row(
    handing: Handing, privacy: Privacy, layout: Layout, cohort: Cohort, examples: int
) -> NDArray[np.unsignedinteger]:
    """The update as whole numbers: cut down to its norm, weighed by its examples, with the node's part of the noise."""
    update, base = handing.update.tensors, handing.update.base
    share = 1.0 if privacy.norm is None else factor(norm_of(update, base), privacy.norm)
    counted = min(examples, layout.most)
    row, beyond = layout.encode(update, base, share * counted / layout.most, counted)
    if beyond:
        sys.stderr.write(f"secure aggregation: {beyond} of {layout.count} values were beyond the range, and cut off\n")
    dp = privacy.differential_privacy
    if dp and dp.mode == "distributed":
        distributed.check_room(dp.noise, dp.clip, range=layout.range, cohort=layout.cohort, least=cohort.quorum)
        step = layout.scale(layout.names[0]).step
        deviation = distributed.deviation(dp.noise, dp.clip, step=step, count=layout.count, least=cohort.quorum)
        distributed.noisy(row[: layout.count], deviation, Generator())
    return row


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """What a node has written down of one round, in its run's folder."""

    run: Path
    place: Place
    bounds: Bounds

    @classmethod
    def of(cls, task: Task, folder: Path) -> "Book":
        """That of a task's round; the run is known by what its folder says, not by what the coordinator does."""
        identity = Run(folder.parent).owner()[0].partition("-")[0]
        place = Place(run=identity, round=task.key.round, node=task.key.node)
        return cls(run=folder.parent, place=place, bounds=Bounds.of(folder))

    @property
    def path(self) -> Path:
        """The secrets."""
        return self._file("json")

    @property
    def masked(self) -> Path:
        """The masked row, as it leaves."""
        return self._file("safetensors")

    @property
    def told(self) -> Path:
        """Which training the row is of, and of what it is."""
        return self._file("told")

    @property
    def least(self) -> int:
        """The fewest nodes that a sum may be of."""
        return max(LEAST, self.bounds.least or 0)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """One task at a time asks the book."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        with self._file("lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def secrets(self) -> Secrets:
        """Raises ValueError where there are none: the node takes no part in a round whose keys it has not made."""
        try:
            return Secrets.from_json(json.loads(self.path.read_bytes()))
        except FileNotFoundError:
            raise ValueError("the node's keys of this round are gone") from None

    def write(self, secrets: Secrets) -> None:
        """For good, before what follows from them leaves the node."""
        write_whole(self.path, json.dumps(secrets.to_json()).encode())

    def turn_to(self, round: int) -> None:
        """Begin the page of a round, and remove those before it: nothing may be asked of them any more.

        Raises ValueError for a round before the newest one: its update under the masks of another cohort would tell,
        by subtraction, who was in one and not in the other.
        """
        newest = self._folder / f"{self.place.node}.newest"
        if newest.exists() and round < (last := int(newest.read_text())):
            raise ValueError(f"round {round} is over for this node, which has taken part in round {last}")
        write_whole(newest, str(round).encode())
        for path in self._folder.glob(f"r*-{self.place.node}.*"):
            if path.name.partition("-")[0] != f"r{round:04d}":
                remove(path)

    def hand_out(self, folder: Path) -> Blob:
        """Have the masked row be the update of the task in that folder."""
        update = folder / "update.safetensors"
        remove(update)
        os.link(self.masked, update)
        return digest(update)

    def identity(self) -> Identity:
        """The node's own: its owner's, or one that is made once for a node of that name on this account."""
        if self.bounds.identity:
            return Identity.load(self.bounds.identity)
        path = self.run.parent.parent / "identity" / self.place.node
        if not path.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            made = beside(path)
            Identity.create(made)
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.link(made, path)
                made.with_name(f"{made.name}.pub").replace(path.with_name(f"{path.name}.pub"))
            for left in (made, made.with_name(f"{made.name}.pub")):
                remove(left)
        return Identity.load(path)

    def pins(self, cohort: Cohort) -> dict[str, str]:
        """The fingerprints that the nodes of a cohort must have: those that the owner wrote down, and no other node.

        Where there are none, those that this run's nodes had when they were first seen. Raises ValueError where an
        owner asks for more nodes than there are identities.
        """
        seen = {name: fingerprint(advert.identity) for name, advert in cohort.adverts.items()}
        if self.bounds.least and len(set(seen.values())) < self.bounds.least:
            raise ValueError(f"the cohort has {len(set(seen.values()))} identities, the owner asks {self.bounds.least}")
        if self.bounds.peers and (known := read_pins(self.bounds.peers.read_text())):
            return known
        return {**seen, **self._first_seen()}

    def pin(self, cohort: Cohort) -> None:
        """Write down who was seen for the first time."""
        seen = {name: fingerprint(advert.identity) for name, advert in cohort.adverts.items()}
        lines = (f"{name} {mark}\n" for name, mark in sorted({**seen, **self._first_seen()}.items()))
        write_whole(self._peers, "".join(lines).encode())

    def _first_seen(self) -> dict[str, str]:
        return read_pins(self._peers.read_text()) if self._peers.exists() else {}

    @property
    def _folder(self) -> Path:
        return self.run / "secagg"

    @property
    def _peers(self) -> Path:
        return self._folder / "peers"

    def _file(self, suffix: str) -> Path:
        return self._folder / f"r{self.place.round:04d}-{self.place.node}.{suffix}"
