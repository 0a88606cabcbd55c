"""Letting a coordinator's key in, and out again: the owner's folder, and one line of authorized_keys.

Everything is looked at before anything is written.
"""

from __future__ import annotations

import time
from pathlib import Path

from fedctl.node.agent import Environments, Run, remove, write_whole
from fedctl.node.owner import identity, marks, program, publickey
from fedctl.node.owner import policy as policies
from fedctl.node.owner.errors import OwnerError
from fedctl.node.owner.place import Enrolled, Place
from fedctl.node.owner.publickey import PublicKey

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional, Tuple


class Enrolment:
    """What is to be written for a key: its line of authorized_keys and the record of it. Raises OwnerError."""

    def __init__(
        self, place: Place, key: PublicKey, policy: Optional[Path], authorized_keys: Optional[Path], python: str
    ) -> None:
        self.place = place
        self.key = key
        if policy is not None or place.policy.exists():
            policies.load(policy or place.policy)
        self.policy = None if policy is None else policy.read_bytes()
        self.authorized_keys = resolved(authorized_keys)
        self.line = publickey.line_for(key, program.command(place, python, key.fingerprint))
        self.content, self.is_renewed = placed(self.authorized_keys, key, self.line, place)
        for other in beside(self.authorized_keys):
            refuse_others(other, key, place)
        self.home = place.home_of(key.fingerprint)

    def carry_out(self) -> None:
        """Write all of it: the line, which opens the door, comes last."""
        self.place.make()
        program.install(self.place)
        if self.policy is not None:
            write_whole(self.place.policy, self.policy)
        identity.make(self.place)
        known = self.place.find(self.key.fingerprint)
        self.place.remember(
            {
                "fingerprint": self.key.fingerprint,
                "key": str(self.key),
                "comment": self.key.comment,
                "at": known.at if known else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "home": str(self.home),
                "authorized_keys": str(self.authorized_keys),
            }
        )
        folder = self.authorized_keys.parent
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
        elif folder.name == ".ssh":
            folder.chmod(0o700)  # sshd takes no key from a folder that others may write to
        try:
            write_whole(self.authorized_keys, self.content)
        except OSError as error:
            raise OwnerError(
                f"{self.authorized_keys} cannot be written: {error.strerror}",
                f"have someone who may write there put this line into it: {self.line}",
            ) from None
        self.authorized_keys.chmod(0o600)


def resolved(authorized_keys: Optional[Path]) -> Path:
    """The file that sshd reads; where a link leads to it, what it leads to, which is to stay one."""
    return (authorized_keys or Path("~/.ssh/authorized_keys")).expanduser().resolve()


def beside(path: Path) -> List[Path]:
    """The other file that sshd reads where nobody told it otherwise."""
    return [path.with_name("authorized_keys2")] if path.name == "authorized_keys" else []


def placed(path: Path, key: PublicKey, line: str, place: Place) -> Tuple[bytes, bool]:
    """The file with the key's line in it, and whether it replaces one of ours; all other lines stay as they are.

    Raises OwnerError where a line lets the same key in that is none of ours.
    """
    ours = refuse_others(path, key, place)
    kept = without(path, ours)
    at = min(ours) - 1 if ours else len(kept)
    return joined([*kept[:at], line, *kept[at:]]), bool(ours)


def without(path: Path, numbers: List[int]) -> List[str]:
    """The lines of a file but for those of these numbers."""
    return [line for number, line in enumerate(publickey.rows(text_of(path)), start=1) if number not in numbers]


def joined(lines: List[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def refuse_others(path: Path, key: PublicKey, place: Place) -> List[int]:
    """The numbers of our own lines for a key in that file; raises OwnerError for one that gives it more."""
    ours = []
    for line in publickey.lines_of(text_of(path)):
        if line.key != key.blob:
            continue
        if is_ours(line, place):
            ours.append(line.number)
            continue
        command = publickey.command_of(line.options)
        gives = "a shell" if command is None else f"`{command[:60]}`"
        raise OwnerError(
            f"{path}:{line.number} lets this key in already, and gives it {gives}, which fedctl's would not end",
            f"remove line {line.number}, then enroll the key again",
        )
    return ours


def is_ours(line: publickey.Line, place: Place) -> bool:
    """Whether a line is one that was written here, whole: nobody has taken `restrict` out of it."""
    command = publickey.command_of(line.options) or ""
    return line.options.startswith('restrict,command="') and str(place.program / "serve.py") in command


def text_of(path: Path) -> str:
    """What stands in a file, or nothing; its bytes come back as they were."""
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise OwnerError(f"{path} cannot be read: {error.strerror}", "let this account read it") from None


def choose(place: Place, wanted: Optional[str]) -> Enrolled:
    """The key that is meant: the only one there is, or by its file or its fingerprint. Raises OwnerError."""
    keys = place.enrolled()
    if wanted is None:
        if len(keys) != 1:
            known = ", ".join(key.fingerprint for key in keys)
            raise OwnerError(
                f"{len(keys)} keys are enrolled{': ' if keys else ''}{known}",
                "name one with --key" if keys else "`fedctl node enroll --key FILE` enrolls one",
            )
        return keys[0]
    fingerprint = wanted if wanted.startswith("SHA256:") else publickey.read(Path(wanted)).fingerprint
    found = next((key for key in keys if key.fingerprint == fingerprint), None)
    if found is None:
        raise OwnerError(f"{fingerprint} is not enrolled", "`fedctl node show` lists the keys that are")
    return found


def revoke(place: Place, key: Enrolled) -> List[str]:
    """Close the door on a key and end whatever it has at work; the ledger and what is in its home stay.

    Returns what there is to say about it.
    """
    remove(place.record(key.fingerprint))  # first: an agent that is at work looks for it before it answers
    blob = key.key.split()[1]
    lines = publickey.lines_of(text_of(key.authorized_keys))
    ours = [line.number for line in lines if line.key == blob and is_ours(line, place)]
    if ours:
        write_whole(key.authorized_keys, joined(without(key.authorized_keys, ours)))
        key.authorized_keys.chmod(0o600)
    ended = marks.end(place, key.fingerprint)
    for run in sorted((key.home / "runs").glob("*/queue")):
        ended += bool(Run(run.parent).held())
        Run(run.parent).stop()
    environments = Environments(key.home)
    environments.stop(environments.held_here())
    said = [f"{key.authorized_keys}: the line was removed" if ours else f"{key.authorized_keys}: no line was there"]
    said += [f"{ended} of its processes were ended"] if ended else []
    for path in (key.authorized_keys, *beside(key.authorized_keys)):
        left = [line.number for line in publickey.lines_of(text_of(path)) if line.key == blob]
        said += [f"attention: {path}:{number} still lets this key in, and not by fedctl" for number in left]
    return said
