"""Every training that this node was asked for, and what those with noise have spent: the owner's own count.

A line of JSON each, in the owner's folder; whoever writes holds the file's lock. Two trainings that count against one ε
never begin while the other is at work: neither would know what the other spends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from pathlib import Path

from fedctl.node.agent import LONGEST_HEADER, Refused, Run, is_held, key_of, open_own, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterable, Iterator, List, Optional, TextIO, Tuple

    Place = Tuple[str, str]

SPENT = ("noise", "rate", "steps")
"""What a training with noise tells of its mechanism: the noise multiplier, the sampling rate, and the steps."""


class Training:
    """One training: where it is done, and what it has spent once that left (None: nothing that is known)."""

    def __init__(self, folder: Path, *, is_private: bool) -> None:
        self.folder = folder
        self.is_private = is_private
        self.spent: Optional[List[float]] = None
        self.epsilon: Optional[float] = None

    @property
    def is_at_work(self) -> bool:
        run = Run(self.folder.parent)
        if not self.folder.is_dir() or (self.folder / "result.json").exists():
            return False
        return is_held(self.folder / "lock") or (run.worker_lives() and self.folder.name in run.queued())

    @property
    def cost(self) -> Optional[List[float]]:
        """What it has spent, also where its result has not left yet."""
        if self.spent is None:
            with contextlib.suppress(OSError, ValueError), open_own(self.folder / "result.json", below=2) as file:
                return spent_of(parse(file.read(LONGEST_HEADER)).get("privacy"))
        return self.spent


class Trainings:
    """The file of them; each is known by its run's identity and its key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def count(self, identity: str, key: str) -> int:
        """How many trainings were begun but for that one."""
        with self.locked() as file:
            return len(self.read(file).keys() - {(identity, key)})

    @contextlib.contextmanager
    def turn(
        self, identity: str, key: str, folder: Path, *, is_private: bool, most: Optional[int]
    ) -> Iterator[Optional[str]]:
        """`begin` a training; until it is in its queue, and so at work, no other one is begun."""
        with self.path.with_name(f"{self.path.name}.turn").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield self.begin(identity, key, folder, is_private=is_private, most=most)

    def begin(
        self, identity: str, key: str, folder: Path, *, is_private: bool, most: Optional[int] = None
    ) -> Optional[str]:
        """Count a training, once; where it has to wait for another, nothing is counted, and the reason is returned.

        Raises Refused where there are `most` already.
        """
        with self.locked() as file:
            known = self.read(file)
            others = [training for place, training in known.items() if place != (identity, key)]
            if is_private and any(other.is_private and other.is_at_work for other in others):
                return "another training that counts against the same ε is at work there"
            if (identity, key) not in known:
                if most is not None and len(known) >= most:
                    raise Refused(no_more(most))
                self.append(file, identity, key, {"folder": str(folder), "is_private": is_private})
        return None

    def note(self, identity: str, key: str, privacy: object) -> None:
        """Write down what a training has spent, before its result leaves."""
        spent = spent_of(privacy)
        if spent is not None and isinstance(privacy, dict):
            with self.locked() as file:
                training = self.read(file).get((identity, key))
                if training is not None and training.spent != spent:
                    epsilon = privacy.get("epsilon")
                    self.append(file, identity, key, {"spent": spent, "epsilon": epsilon})

    def note_all(self, runs: Iterable[Run]) -> None:
        """The same of all trainings of runs whose results are to be removed."""
        for run in runs:
            for folder in run.folders():
                key = key_of(folder.name)
                self.note(run.owner()[0], key, (run.result(key) or {}).get("privacy"))

    def epsilon(self) -> Optional[float]:
        """The largest ε that a training told as it left, with what it knew of others; None where none told one."""
        with self.locked() as file:
            told = [training.epsilon for training in self.read(file).values() if training.epsilon is not None]
        return max(told, default=None)

    def spent(self) -> List[List[float]]:
        """What each training with noise has spent: noise multiplier, sampling rate, steps."""
        with self.locked() as file:
            costs = [training.cost for training in self.read(file).values()]
        return [cost for cost in costs if cost is not None]

    @contextlib.contextmanager
    def locked(self) -> Iterator[TextIO]:
        with self.path.open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def read(self, file: TextIO) -> Dict[Place, Training]:
        """All trainings; a line that a loss of power cut off is none."""
        file.seek(0)
        found: Dict[Place, Training] = {}
        for line in file:
            with contextlib.suppress(ValueError, KeyError):
                entry = parse(line.encode())
                place = (entry["identity"], entry["key"])
                if "spent" in entry:
                    found[place].spent, found[place].epsilon = entry["spent"], entry["epsilon"]
                else:
                    found.setdefault(place, Training(Path(entry["folder"]), is_private=entry["is_private"]))
        return found

    def append(self, file: TextIO, identity: str, key: str, more: Dict[str, object]) -> None:
        file.write(f"\n{json.dumps({'identity': identity, 'key': key, **more})}")
        file.flush()


def no_more(most: int) -> str:
    """Why a training is refused that is one too many."""
    several = "s" if most > 1 else ""
    return f"the owner of this node allows {most} training{several} in all, and no more are left"


def spent_of(privacy: object) -> Optional[List[float]]:
    """What a result's `privacy` tells of its mechanism; None where it tells nothing."""
    if not isinstance(privacy, dict) or not all(isinstance(privacy.get(name), (int, float)) for name in SPENT):
        return None
    return [privacy[name] for name in SPENT]
