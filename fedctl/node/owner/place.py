"""The owner's folder on a node, and the keys that are enrolled in it.

It lies outside of the folders that a coordinator's requests may remove, and only its owner can look into it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from fedctl.node.agent import write_whole
from fedctl.node.owner.errors import OwnerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

DIGITS = 12


class Enrolled:
    """A key that may ask this node for what its owner's policy allows; `home` is what it may keep here, and where."""

    def __init__(self, record: Dict[str, Any]) -> None:
        self.record = record
        self.fingerprint = str(record["fingerprint"])
        self.key = str(record["key"])
        self.comment = str(record["comment"])
        self.at = str(record["at"])
        self.home = Path(record["home"])
        self.authorized_keys = Path(record["authorized_keys"])


class Place:
    """The owner's folder: every name in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "program"
        self.keys = folder / "keys"
        self.lines = folder / "lines"
        self.policy = folder / "policy.yaml"
        self.identity = folder / "identity"
        self.peers = folder / "peers"
        self.ledger = folder / "ledger.jsonl"
        self.trainings = folder / "trainings"

    @classmethod
    def here(cls) -> Place:
        """This account's."""
        return cls(Path(os.environ.get("FEDCTL_NODE_HOME") or "~/.fedctl-node").expanduser().absolute())

    @property
    def homes_of_ledgers(self) -> List[Path]:
        """The folders of ledgers: that of enrolled keys where there are some, and then that of other logins, if any."""
        is_guarded = self.ledger.exists() or any(self.keys.glob("*.json"))
        unguarded = [_base()] if (_base() / self.ledger.name).exists() else []
        return [self.folder, *unguarded] if is_guarded else unguarded or [self.folder]

    @property
    def shown(self) -> List[str]:
        """What trainings read there, for secure aggregation, and no more."""
        return [str(path) for path in (self.identity, self.identity.with_suffix(".pub"), self.peers)]

    def make(self) -> None:
        """Make the folder, and close it to others also where it is there already."""
        for folder in (self.folder, self.keys, self.lines):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)

    def home_of(self, fingerprint: str) -> Path:
        """Where that key's runs, models and environments are: no key sees those of another."""
        return _base() / f"key-{name_of(fingerprint)[:DIGITS]}"

    def enrolled(self) -> List[Enrolled]:
        """All keys, in the order of their enrolment."""
        found = [self.find(path.stem) for path in self.keys.glob("*.json")]
        return sorted((key for key in found if key is not None), key=lambda key: (key.at, key.fingerprint))

    def find(self, fingerprint: str) -> Optional[Enrolled]:
        """The key of that fingerprint, None where it is not enrolled; raises OwnerError for a damaged record."""
        path = self.record(fingerprint)
        try:
            return Enrolled(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OwnerError(f"{path} cannot be read: {error}", "enroll that key again") from None

    def record(self, fingerprint: str) -> Path:
        return self.keys / f"{name_of(fingerprint)}.json"

    def version(self) -> str:
        """The version of the program here and the first digits of its agent's SHA-256; empty where there is none."""
        try:
            return (self.program / "version").read_text(encoding="utf-8").strip()
        except OSError:
            return ""

    def remember(self, record: Dict[str, Any]) -> None:
        write_whole(self.record(record["fingerprint"]), json.dumps(record, indent=1).encode())


def _base() -> Path:
    """The agents' folder of this account."""
    return Path(os.environ.get("FEDCTL_HOME") or "~/.fedctl").expanduser().absolute()


def name_of(fingerprint: str) -> str:
    """A fingerprint (`SHA256:...`) as part of a file's name; such a part stays as it is."""
    return fingerprint.replace("SHA256:", "").replace("/", "_").replace("+", "-")
