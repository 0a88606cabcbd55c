"""The lease on a run: at most one coordinator works on it, also where several hosts share its folder.

On one host `flock` decides, at once: it ends with its process. On a shared folder (NFS, SMB, sshfs) it may be local to
each host, so the holder also renews the lease: it counts in the file, which names it. Whoever comes from another host
watches the count; no clocks are compared, which may differ by hours. Hosts are told apart by their names. Before it
writes to the journal, a holder looks whether the lease is still its own: it may have been suspended for longer than
others wait.
"""

import contextlib
import fcntl
import getpass
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedctl.errors import StateError

BEAT_S = 2.0
"""How often a holder renews its lease."""
BEATS = 6
"""How many times its holder may miss that before others take it over."""
_OWNER = {"pid", "host", "user"}


class Superseded(StateError):
    """Another coordinator has taken the run over: this one has to leave, and its nodes' work goes on."""


class Lease:
    """A lease that this process holds.

    `seen_at` is the last sign of life of the holder before, by the clock of the folder; None where there was none.
    """

    def __init__(self, path: Path, run: str, file: int, record: Mapping[str, Any], seen_at: datetime | None) -> None:
        self.seen_at = seen_at
        self._path = path
        self._run = run
        self._file = file
        self._record = record
        self._beats = 0

    def check(self) -> None:
        """Raises Superseded when the lease is no longer this one's."""
        if self._is_ours():
            return
        new = owner(self._path)
        by = f"process {new['pid']} of {new['user']} on {new['host']}" if new.keys() >= _OWNER else "another one"
        raise Superseded(
            f"run {self._run} was taken over by {by} while this coordinator gave no sign of life",
            hint=f"`fedctl status {self._run} --follow` watches it",
        )

    def beat(self) -> None:
        """Renew it, unless it is another's by now."""
        if self._is_ours():
            self._beats += 1
            _write(self._file, {**self._record, "beat": _count(self._beats)})

    def release(self) -> None:
        """Give it back; the file goes on to say who held it last."""
        if self._is_ours():
            _write(self._file, {**self._record, "beat": _count(self._beats), "state": "free"})

    def _is_ours(self) -> bool:
        return bool(owner(self._path).get("lease") == self._record["lease"])


@contextlib.contextmanager
def hold(path: Path, run: str, told: Callable[[str], None] = lambda _: None) -> Iterator[Lease]:
    """Hold the lease in the file at `path`; raises StateError, saying who holds it, when another process does.

    Whoever died on another host is waited for, `BEAT_S` times `BEATS`; `told` hears of that.
    """
    record = _record()
    file, seen_at = _take(path, run, record, told)
    lease, is_over = Lease(path, run, file, record, seen_at), threading.Event()

    def renew() -> None:
        while not is_over.wait(BEAT_S):
            with contextlib.suppress(OSError):  # the next one may come through; what is written then is checked first
                lease.beat()

    renewing = threading.Thread(target=renew, name="lease", daemon=True)
    renewing.start()
    try:
        yield lease
    finally:
        is_over.set()
        renewing.join()
        with contextlib.suppress(OSError):  # out of reach: whoever comes next watches it for a while
            lease.release()
        os.close(file)


def owner(path: Path) -> dict[str, Any]:
    """Who holds the lease or held it last; nothing where nobody has yet."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_held(path: Path, *, surely: bool = False) -> bool:
    """True while a coordinator lives.

    Of one on another host the age of the file decides, by the clock of the folder and this one's: where they differ,
    one that lives may seem dead. `surely` watches it instead, for up to `BEAT_S` times `BEATS`.
    """
    try:
        with path.open("rb") as file:
            age_s = time.time() - os.fstat(file.fileno()).st_mtime
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    if not _is_elsewhere(owner(path)):
        return False
    return _is_renewed(path) if surely else age_s < BEAT_S * BEATS


def _take(path: Path, run: str, record: Mapping[str, Any], told: Callable[[str], None]) -> tuple[int, datetime | None]:
    """The locked file of a lease that is ours now, and when the holder before wrote to it last."""
    while True:
        with contextlib.ExitStack() as undo:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            undo.callback(os.close, file)
            if not _lock(file, path):
                raise _held(path, run)
            if not _is_at(file, path):  # another one has just put its own file there
                continue
            known, about = owner(path), os.fstat(file)
            seen_at = datetime.fromtimestamp(about.st_mtime, UTC) if about.st_size else None
            if not _is_elsewhere(known):
                _write(file, record)
                undo.pop_all()
                return file, seen_at
            told(f"run {run} was held on {known['host']}: waiting {BEAT_S * BEATS:.0f} s for a sign of life from there")
            if _is_renewed(path):
                raise _held(path, run)
            fresh = _replace(path, run, record)
            told(f"there was none: this coordinator takes run {run} over")
            return fresh, seen_at


def _replace(path: Path, run: str, record: Mapping[str, Any]) -> int:
    """Put a locked file of our own in the place of a lease whose holder is gone.

    Were it to wake up, what it still writes goes to the old file. Of two that come at a time the later one wins, and
    the other one sees it.
    """
    temporary = path.with_name(f".{path.name}.tmp-{record['lease'][:8]}")
    with contextlib.ExitStack() as undo:
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        undo.callback(os.close, file)
        undo.callback(temporary.unlink, missing_ok=True)
        _lock(file, temporary)
        _write(file, record)
        temporary.rename(path)
        time.sleep(BEAT_S)
        if owner(path).get("lease") != record["lease"]:
            raise _held(path, run)
        undo.pop_all()
    return file


def _record() -> dict[str, Any]:
    """Who this process is. All that changes in it keeps its length, so that a reader never sees half a record."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "user": getpass.getuser(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv[:3]),
        "lease": secrets.token_hex(16),
        "state": "held",
        "beat": _count(0),
    }


def _count(beats: int) -> str:
    return f"{beats:010d}"


def _write(file: int, record: Mapping[str, Any]) -> None:
    """Write a record in place, over all of the one before; on the disk of the folder when it returns."""
    os.pwrite(file, json.dumps(record).encode().ljust(os.fstat(file).st_size), 0)
    os.fsync(file)


def _is_renewed(path: Path) -> bool:
    """Watch a lease; looks are counted, so that one that is itself suspended meanwhile does not judge too soon."""
    before = owner(path)
    for _ in range(2 * BEATS):
        time.sleep(BEAT_S / 2)
        if (now := owner(path)) != before:
            return now.get("state") == "held"
    return False


def _is_elsewhere(known: Mapping[str, Any]) -> bool:
    """Whether the lease is one of another host's that was not given back: its process may live."""
    return known.get("state") == "held" and known.get("host") != socket.gethostname()


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: int, path: Path) -> bool:
    """Lock a file at once, or nearly: whoever asks whether the run is alive holds it for a moment too."""
    for _ in range(5):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        except OSError as error:
            raise StateError(
                f"{path} cannot be locked: {error.strerror}", hint="runs need a file system that has locks"
            ) from error
        else:
            return True
    return False


def _held(path: Path, run: str) -> StateError:
    known = owner(path)
    return StateError(
        f"run {run} is held by process {known.get('pid', '?')} of {known.get('user', '?')} on "
        f"{known.get('host', '?')} since {known.get('since', '?')}",
        hint=f"`fedctl status {run} --follow` watches it, `fedctl stop {run}` ends it",
    )
