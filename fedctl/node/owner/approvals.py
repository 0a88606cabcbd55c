"""What the owner has approved, by digests: bundles of code, and lists of packages; and what waits for them.

A bundle's name is the SHA-256 of its bytes, so what was approved is those bytes. `approved/<digest>.json` is the mark,
written last; beside it is the unpacked bundle, for the next one to be compared with.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from fedctl.node.agent import DIGEST, Refused, discard, make_folder, parse, remove, sha256, unpack, write_whole
from fedctl.node.owner.errors import USAGE, OwnerError

CODE, ENVIRONMENT = "code", "environment"
MOST = 50
"""Requests that wait at a time; of one key no more than `MOST_OF_ONE`, its oldest giving way."""
MOST_OF_ONE = 5
LARGEST = 64 * 2**20
"""Bytes of a bundle; the coordinator makes none of more than 50 MB of the user's files."""
LARGEST_NEEDS = 2**20


class Asked(NamedTuple):
    """What was asked for: by which key, and when, in seconds since 1970; of what is approved, when that was."""

    digest: str
    kind: str
    at: float
    asker: str


class Approvals:
    """The owner's `approved/` and `pending/`."""

    def __init__(self, folder: Path) -> None:
        self.approvals = folder / "approved"
        self.requests = folder / "pending"

    def is_approved(self, digest: object, kind: str) -> bool:
        """Whether code, or packages, of that digest may be used."""
        record = _read(self._mark(digest)) if isinstance(digest, str) and DIGEST.match(digest) else None
        return record is not None and record["kind"] == kind

    def ask_code(self, digest: str, blob: Path, asker: str) -> None:
        """Note that a bundle, which is the file `blob`, waits for the owner; raises Refused for one that cannot be."""
        if self._is_known(digest, CODE):
            return
        self._make_room(asker)
        target = self.requests / f"{digest}.tar"
        from fedctl.node.owner.comparison import strange_names  # what it imports is slow to be

        if blob.stat().st_size > LARGEST:
            raise Refused(f"the code is over {LARGEST // 2**20} MB: nobody could look through it")
        write_whole(target, blob.read_bytes())
        if _digest_of(target) != digest or any(strange_names(target)):
            remove(target)
            raise Refused("what came as code is no bundle")
        self._note(digest, CODE, asker, {})

    def ask_environment(self, digest: str, needs: Dict[str, Any], asker: str) -> None:
        """Note that packages wait for the owner: `needs` as the agent takes them. Raises Refused for too many."""
        if self._is_known(digest, ENVIRONMENT):
            return
        if len(json.dumps(needs)) > LARGEST_NEEDS:
            raise Refused("the list of packages is too long for anybody to look through")
        self._make_room(asker)
        self._note(digest, ENVIRONMENT, asker, {"needs": needs})

    def pending(self) -> List[Asked]:
        """What waits, the oldest first."""
        waiting = (asked for asked in _listed(self.requests) if not self.is_approved(asked.digest, asked.kind))
        return [asked for asked in waiting if asked.kind != CODE or self._tar(asked.digest).exists()]

    def approved(self) -> List[Asked]:
        """What is approved, the oldest first."""
        return _listed(self.approvals)

    def find(self, text: str) -> str:
        """The digest that begins so, of what waits before what is approved; raises OwnerError."""
        for several in (self.pending(), self.approved()):
            found = [asked.digest for asked in several if text and asked.digest.startswith(text.lower())]
            if len(found) > 1:
                raise OwnerError(f"{len(found)} digests begin with {text}", "type more of it", code=USAGE)
            if found:
                return found[0]
        raise OwnerError(f"nothing that begins with {text!r} was asked for", "`fedctl node show` lists what was")

    def diff(self, digest: str) -> Iterator[str]:
        """What is new against what was approved last of its kind, in lines that no terminal obeys."""
        from fedctl.node.owner import comparison

        record = self._record(digest)
        before = self._last(record["kind"], digest)
        if record["kind"] == ENVIRONMENT:
            yield from comparison.packages(record["needs"], before and before["needs"])
            return
        new = comparison.files_of(self._tar(digest) if self._tar(digest).exists() else self.approvals / digest)
        old = comparison.files_of(self.approvals / before["digest"]) if before else {}
        yield from comparison.code(new, old, since=before["digest"] if before else None)

    def approve(self, digest: str) -> None:
        """Let what waits be used from now on; raises OwnerError where its bytes are not those that were asked for."""
        record = self._record(digest)
        if self.is_approved(digest, record["kind"]):
            return
        _own_folder(self.approvals)
        if record["kind"] == CODE:
            source = self._tar(digest)
            if _digest_of(source) != digest:
                self.withdraw(digest)
                raise OwnerError(
                    f"the code of {digest[:12]} has changed since it came", "have the coordinator ask again"
                )
            discard(self.approvals / digest)
            make_folder(self.approvals / digest, lambda folder: unpack(source, folder))
        write_whole(self._mark(digest), json.dumps({**record, "at": time.time()}).encode())
        self._forget(digest)

    def withdraw(self, digest: str) -> None:
        """Take an approval back, or drop what waits for one."""
        remove(self._mark(digest))
        discard(self.approvals / digest)
        self._forget(digest)

    def _is_known(self, digest: str, kind: str) -> bool:
        if not DIGEST.match(digest):
            raise Refused(f"not a digest: {digest!r}")
        return self.is_approved(digest, kind) or any(asked[:2] == (digest, kind) for asked in self.pending())

    def _make_room(self, asker: str) -> None:
        _own_folder(self.requests)
        waiting = self.pending()
        own = [asked for asked in waiting if asked.asker == asker]
        for asked in own[: max(0, len(own) + 1 - MOST_OF_ONE)]:
            self._forget(asked.digest)
        if len(own) < MOST_OF_ONE and len(waiting) >= MOST:
            raise Refused(f"{MOST} requests wait for the owner of this node: ask them to run `fedctl node show`")

    def _note(self, digest: str, kind: str, asker: str, more: Dict[str, Any]) -> None:
        record = {"digest": digest, "kind": kind, "at": time.time(), "asker": asker, **more}
        write_whole(self.requests / f"{digest}.json", json.dumps(record).encode())

    def _record(self, digest: str) -> Dict[str, Any]:
        for path in (self.requests / f"{digest}.json", self._mark(digest)):
            record = _read(path) if DIGEST.match(digest) else None
            if record is not None:
                return record
        raise OwnerError(f"{digest[:12]} was not asked for", "`fedctl node show` lists what was")

    def _last(self, kind: str, digest: str) -> Optional[Dict[str, Any]]:
        """The record of what was approved last of a kind, but for this one."""
        found = [asked for asked in self.approved() if asked.kind == kind and asked.digest != digest]
        return _read(self._mark(found[-1].digest)) if found else None

    def _forget(self, digest: str) -> None:
        remove(self.requests / f"{digest}.json")
        remove(self._tar(digest))

    def _tar(self, digest: str) -> Path:
        return self.requests / f"{digest}.tar"

    def _mark(self, digest: str) -> Path:
        return self.approvals / f"{digest}.json"


def _listed(folder: Path) -> List[Asked]:
    found = []
    for path in folder.glob("*.json"):
        record = _read(path) if DIGEST.match(path.stem) else None
        if record is not None:
            found.append(Asked(path.stem, str(record["kind"]), float(record["at"]), str(record["asker"])))
    return sorted(found, key=lambda asked: (asked.at, asked.digest))


def _read(path: Path) -> Optional[Dict[str, Any]]:
    """A record; None where there is none, or it is damaged: then nothing was asked for, and nothing approved."""
    try:
        record = parse(path.read_bytes())
    except (OSError, ValueError):
        return None
    is_whole = {"digest", "kind", "at", "asker"} <= record.keys() and record["digest"] == path.stem
    return record if is_whole else None


def _own_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _digest_of(path: Path) -> str:
    try:
        with path.open("rb", buffering=0) as file:
            return str(sha256(file, path.stat().st_size).hexdigest())
    except OSError:
        return ""
