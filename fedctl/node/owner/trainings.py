"""Every training that this node was asked for, and what those with noise have spent: the owner's own count.

A line of JSON each, in the owner's folder; whoever writes holds the file's lock. Two trainings that count against one ε
never run at the same time: neither would know what the other spends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from pathlib import Path

from fedctl.node.agent import Run, is_held, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterator, List, Optional, TextIO, Tuple

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
            with contextlib.suppress(OSError, ValueError):
                return spent_of(parse((self.folder / "result.json").read_bytes()).get("privacy"))
        return self.spent


class Trainings:
    """The file of them; each is known by its run's identity and its key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def count(self, identity: str, key: str) -> int:
        """How many trainings were begun but for that one."""
        with self.locked() as file:
            return len(self.read(file).keys() - {(identity, key)})

    def begin(self, identity: str, key: str, folder: Path, *, is_private: bool) -> Optional[str]:
        """Count a training, once; where it has to wait for another, nothing is counted, and the reason is returned."""
        with self.locked() as file:
            known = self.read(file)
            others = [training for place, training in known.items() if place != (identity, key)]
            if is_private and any(other.is_private and other.is_at_work for other in others):
                return "another training that counts against the same ε is at work there"
            if (identity, key) not in known:
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

    def epsilon(self) -> Optional[float]:
        """What all trainings with noise have spent together, as the last of them told it; None where there was none."""
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


def spent_of(privacy: object) -> Optional[List[float]]:
    """What a result's `privacy` tells of its mechanism; None where it tells nothing."""
    if not isinstance(privacy, dict) or not all(isinstance(privacy.get(name), (int, float)) for name in SPENT):
        return None
    return [privacy[name] for name in SPENT]
