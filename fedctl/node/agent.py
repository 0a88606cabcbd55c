"""The agent: what the coordinator talks to on a node, over the stdin and stdout of one command.

One standard-library file for Python 3.8 or newer: it is sent over stdin on first contact, kept under the hash of its
own bytes, and runs before any environment exists. It keeps blobs by their SHA-256, starts a worker that outlives it,
puts tasks into the worker's folder, and pushes what it sees there (progress, results, losses) down the line.

A frame is a JSON header and a raw body, each behind its length. The agent greets before its first one, so that what a
login shell printed can be told apart. Requests carry `id` and `op`; the answer carries the same id as `re`. Pushes
carry `push`. The agent ends when its stdin ends; whatever it started goes on.

A task waits in `queue/`; whoever works on it holds its `lock`, has put its process group into `pid` and has taken it
out of the queue, in that order; `result.json` ends it. So at every instant a task is queued, held, done, or lost.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import pwd
import re
import select
import signal
import stat
import struct
import sys
import time
from io import FileIO
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:  # slow to import, as are hashlib, shutil, subprocess and tarfile: whoever needs one imports it
    from subprocess import Popen
    from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

    Header = Dict[str, Any]
    Confined = Tuple[List[str], Mapping[str, str], Optional[Callable[[], None]]]

PROTOCOL = 1
GREETING = b"\0fedctl agent 1\n"
LENGTHS = struct.Struct(">II")
LONGEST_HEADER = 16 * 2**20
LONGEST_BODY = 8 * 2**20
CHUNK = 2**20
BLOCK = 2**20
PIPE = 2**20
SET_PIPE_SIZE = 1031  # fcntl.F_SETPIPE_SZ, which Python knows from 3.10 on
AHEAD = 2**16
TICK_S = 0.01
LIVENESS_S = 1.0
END_S = 10.0
OWNER_S = 10.0
DAY = 24 * 60
PROBE_S = 30.0
IMPORT_S = 85.0  # with PROBE_S before it still an answer that the coordinator waits for
MOST_PATHS = 1000
MOST_MISSES = 3
MOST_RESULT = 2 * 2**20
MOST_METRICS = 1000
LONGEST_NAME = 200
PAGE = 2 * 2**20
TELLING = ("hello", "may", "probe", "accelerators", "look", "trial")
"""Operations whose answers tell of this machine more than that a request was met."""

DIGEST = re.compile(r"[0-9a-f]{64}\Z")
HALF_MADE = re.compile(r"\..+\.[0-9a-f]{12}\Z")
FOLDER = re.compile(r"r[0-9]{4,9}-[A-Za-z0-9][A-Za-z0-9._-]{0,63}-[aescfikhgu][0-9]{1,4}\Z")
RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
VERSION = re.compile(r"[0-9]{1,2}\.[0-9]{1,3}\Z")
READABLE = ("update.safetensors", "train.log")
MADE = {
    "runs": HALF_MADE,
    "blobs": re.compile(r"\.?[0-9a-f]{64}(\..*)?\Z"),
    "bundle": re.compile(r"\.?[0-9a-f]{64}(\..*)?\Z"),
    "env": re.compile(r"\.?([0-9a-f]{64}|python)(\..*)?\Z"),
    "identity": re.compile(r"\.?[A-Za-z0-9][A-Za-z0-9._-]{0,63}(\..*)?\Z"),
    "__pycache__": re.compile(r"agent-[0-9a-f]{12}\..+"),
    "": re.compile(r"(agent-[0-9a-f]{12}\.py(\.tmp-[0-9]+)?|blobs\.lock|ledger\.jsonl(\.torn-[0-9]+)?)\Z"),
}
"""By folder of the home, the names that fedctl gives there, beside whole runs; the agents' own come last."""
LEAST_PYTHON = (3, 10)
BEFORE_ALL = "0" * 64
CHAINED = re.compile(rb',"prev":"([0-9a-f]{64})","hash":"([0-9a-f]{64})"}\n')
NUMBERED = re.compile(rb'{"n":([0-9]{1,18}),')


class Refused(Exception):
    """A request that cannot be met; the text goes back to the coordinator."""


class CutOff(ValueError):
    """A frame that did not come to its end: what came of it, which is nothing where the header is not whole."""

    def __init__(self, header: Header, body: bytes) -> None:
        super().__init__("a frame was cut off")
        self.header = header
        self.body = body


def encode_head(header: Header, size: int) -> bytes:
    """What comes before a frame's body of `size` bytes."""
    head = json.dumps(header, separators=(",", ":")).encode()
    return LENGTHS.pack(len(head), size) + head


def encode_frame(header: Header, body: bytes = b"") -> bytes:
    """The bytes of one frame."""
    return encode_head(header, len(body)) + body


def read_frame(read: Callable[[int], bytes]) -> tuple[Header, bytes] | None:
    """One (header, body) from `read(n)`, which returns exactly n bytes or fewer at the end; None at the end.

    What `read` returns is not used after the next call. Raises CutOff where the end comes too early, and ValueError for
    a frame that is too long or whose header is no JSON object.
    """
    lengths = read(LENGTHS.size)
    if not lengths:
        return None
    if len(lengths) < LENGTHS.size:
        raise CutOff({}, b"")
    head_size, body_size = LENGTHS.unpack(lengths)
    if head_size > LONGEST_HEADER or body_size > LONGEST_BODY:
        raise ValueError(f"a frame claims {head_size} + {body_size} bytes")
    head = read(head_size)
    if len(head) < head_size:
        raise CutOff({}, b"")
    header, body = parse(bytes(head)), read(body_size) if body_size else b""
    if len(body) < body_size:
        raise CutOff(header, body)
    return header, body


def write_all(descriptor: int, *pieces: bytes) -> None:
    """Write all of them, in one call where they fit."""
    views = [memoryview(piece) for piece in pieces if len(piece)]
    while views:
        done = os.writev(descriptor, views)
        while views and done >= len(views[0]):
            done -= len(views.pop(0))
        if done:
            views[0] = views[0][done:]


class Slice:
    """A part of a file, as a body that the system sends without passing it through this process."""

    def __init__(self, file: FileIO, offset: int, limit: int) -> None:
        self.file = file
        self.whole = os.fstat(self.file.fileno()).st_size
        self.offset = min(max(0, offset), self.whole)
        self.size = min(max(0, limit), self.whole - self.offset)

    def __len__(self) -> int:
        return self.size

    def write_to(self, descriptor: int) -> None:
        """Write it; raises OSError where the file became shorter, for what was announced can no longer come."""
        with self.file:
            done = 0
            while done < self.size:
                came = self.pass_on(descriptor, self.offset + done, self.size - done)
                if not came:
                    raise OSError(f"{self.file.name} became shorter")
                done += came

    def pass_on(self, descriptor: int, offset: int, size: int) -> int:
        try:
            return os.sendfile(descriptor, self.file.fileno(), offset, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSOCK):
                raise
            return os.write(descriptor, os.pread(self.file.fileno(), size, offset))  # a system that cannot


def distinct(pairs: list[tuple[str, Any]]) -> Header:
    """A JSON object's fields; raises ValueError for a name given twice, which would be read in two ways."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("JSON that has a name twice")
    return fields


DECODER = json.JSONDecoder(object_pairs_hook=distinct)


def parse(text: bytes) -> Header:
    """A JSON object, no name of which is given twice; raises ValueError for anything else."""
    try:
        value = DECODER.decode(text.decode())
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def beside(path: Path) -> Path:
    """A name for what is not whole yet; the home may be shared by machines, so a process number would not do."""
    return path.with_name(f".{path.name}.{os.urandom(6).hex()}")


def write_whole(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file under another name and rename it into place; a durable one survives a loss of power."""
    temporary = beside(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        remove(temporary)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Have the names in a folder survive a loss of power, where its file system can."""
    with contextlib.suppress(OSError), opened(path) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[int]:
    """A folder's descriptor, for a while."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_own(path: Path, mode: str = "rb", *, below: int = 0, buffering: int = -1) -> Any:
    """Open a plain file where the user's code may write; raises OSError where it is a link, or is no plain file.

    What a link names was never that code's to open, and this process may open more. Of the folders above the file, the
    last `below` may not be links either.
    """

    def opener(name: str, flags: int) -> int:
        *folders, last = Path(name).parts[-1 - below :]
        at = os.open(path.parents[below], os.O_RDONLY | os.O_DIRECTORY)
        try:
            for folder in folders:
                inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
                os.close(at)
                at = inner
            # Nobody opens the other end of a pipe that lies there, so that is not waited for.
            descriptor = os.open(last, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666, dir_fd=at)
        finally:
            os.close(at)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.ELOOP, "not a plain file", name)
        return descriptor

    return open(path, mode, buffering, opener=opener)


def hash_of(content: bytes = b"") -> Any:
    """The running SHA-256 of what has come so far."""
    import hashlib

    return hashlib.sha256(content)


def make_folder(path: Path, fill: Callable[[Path], None]) -> bool:
    """Fill a folder under another name and rename it into place; False where another agent was faster."""
    temporary = beside(path)
    with opened(path.parent) as parent:
        fcntl.flock(parent, fcntl.LOCK_SH)  # until it has its name, nobody sweeps there
        temporary.mkdir()
        try:
            fill(temporary)
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
            return False
        finally:
            discard(temporary)
    return True


def sweep(folder: Path) -> None:
    """Remove what processes that were killed have left half made there, unless one is making something there now."""
    with contextlib.suppress(OSError), opened(folder) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for path in folder.glob(".*"):
            if HALF_MADE.match(path.name):
                discard(path)


def sha256(file: FileIO, size: int) -> Any:
    """The running hash of a file's first `size` bytes."""
    running, room = hash_of(), memoryview(bytearray(min(size, CHUNK)))
    file.seek(0)
    while size > 0:
        came = file.readinto(room[:size])
        if not came:
            raise Refused("a file became shorter")
        running.update(room[:came])
        size -= came
    return running


def is_at(file: FileIO, path: Path) -> bool:
    """False when the open file has another name by now, or none."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def is_held(path: Path) -> bool:
    """True while some process holds the flock of that file."""
    try:
        with open_own(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    return False


def kill_group(pid: int) -> None:
    """Kill the process group that this process leads."""
    if pid > 1:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)


def note(process: Popen[bytes], path: Path) -> None:
    """Write down which group a process leads; where that fails it is ended, for nobody could end it later."""
    try:
        write_whole(path, str(process.pid).encode(), durable=False)
    except OSError:  # a full disk
        kill_group(process.pid)
        process.wait()
        raise


def kill_holder(lock: Path, pid: Path) -> None:
    """Kill the group whose leader wrote `pid`, if it still holds the lock: by now the number may be a stranger's."""
    number = tail(pid, 20)
    if number.isdigit() and is_held(lock):
        kill_group(int(number))


def end_all(held: Callable[[], list[Path]], kill: Callable[[Path], None]) -> None:
    """Kill whoever holds these locks until nobody does; raises Refused where that does not help."""
    deadline = time.monotonic() + END_S
    while True:
        locks = held()
        if not locks:
            return
        if time.monotonic() > deadline:
            raise Refused("a process does not end")
        for lock in locks:
            kill(lock)
        time.sleep(TICK_S)


def tail(path: Path, size: int) -> str:
    """The end of a text file, at most `size` bytes of it; empty when there is none."""
    try:
        with open_own(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return str(file.read(size), "utf-8", "replace")
    except OSError:
        return ""


def output_of(
    command: list[str], seconds: float, *, is_alone: bool = True, confine: Callable[[list[str]], Confined] | None = None
) -> bytes:
    """What a command prints; raises OSError with the end of what it said where it fails or takes longer than that.

    `is_alone` is False in a process that has threads; `confine` is as `Run.start_worker` takes it.
    """
    from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired

    command, words, prepare = confine(command) if confine else (command, {}, None)

    def set_alarm() -> None:
        signal.alarm(int(seconds) + 1)
        if prepare:
            prepare()

    with Popen(
        command,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,
        preexec_fn=set_alarm if is_alone else None,  # noqa: PLW1509  it ends a command whose agent was killed
        env=dict(os.environ, PYTHONDONTWRITEBYTECODE="1", **words),
    ) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except TimeoutExpired:
            kill_group(process.pid)  # what it started may hold the pipes
            raise OSError(f"{command[0]} took longer than {seconds:g} s") from None
    if process.returncode:
        said = (errors or output).decode("utf-8", "replace").strip()
        raise OSError(said[-500:] or f"{command[0]} ended with status {process.returncode}")
    return output


def judge(when: Header, *, is_alone: bool = True) -> Header:
    """Whether this machine may be used now, by its clock and its owner's command, and `why` not.

    It may be worth asking again after so many `seconds`; 0 where nobody can tell. Raises Refused for a command that
    cannot be run.
    """
    rest_s = rest_until(when["hours"], when["days"], time.localtime())
    if rest_s:
        begin = time.strftime("%a %H:%M", time.localtime(time.time() + rest_s))
        return {"may": False, "why": f"outside its hours until {begin}", "seconds": rest_s}
    if when["command"]:
        program, *arguments = when["command"]
        try:
            output_of([str(Path(program).expanduser()), *arguments], OWNER_S, is_alone=is_alone)
        except OSError as error:
            if error.errno is not None:
                raise Refused(f"{program} cannot be run: {error.strerror}") from error
            return {"may": False, "why": str(error).splitlines()[0].strip(), "seconds": 0.0}
    return {"may": True, "why": "", "seconds": 0.0}


def rest_until(hours: list[list[int]], days: list[int], now: time.struct_time) -> float:
    """Seconds until a span of hours begins, 0 within one; spans are in minutes of a day, days from 0 for Monday."""
    at = now.tm_hour * 60 + now.tm_min + now.tm_sec / 60
    coming = []
    for day in range(-1, 8):
        if days and (now.tm_wday + day) % 7 not in days:
            continue
        for begin, end in hours or [[0, DAY]]:
            opens = day * DAY + begin
            if opens <= at < opens + ((end - begin) % DAY or DAY):
                return 0.0
            if opens > at:
                coming.append(opens)
    return 60 * (min(coming) - at)


def nvidia_gpus() -> list[Header]:
    """The GPUs that nvidia-smi knows, `memory` in MiB; raises OSError with what it says where it is there and fails."""
    program = which("nvidia-smi")
    if not program:
        return []
    query = "--query-gpu=name,memory.total,driver_version"
    lines = (
        output_of([program, query, "--format=csv,noheader,nounits"], PROBE_S).decode("utf-8", "replace").splitlines()
    )
    found = [[part.strip() for part in line.rsplit(",", 2)] for line in lines if line.count(",") >= 2]
    return [{"name": name, "memory": memory, "driver": driver} for name, memory, driver in found]


def memory_available() -> int | None:
    """Bytes that a new process could have, where the kernel says so."""
    match = re.search(r"^MemAvailable:\s+([0-9]+) kB", tail(Path("/proc/meminfo"), 4096), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def user() -> str:
    """The account's name, else its number."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def cpus() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Upload:
    """A blob that comes in order: its file, which this process alone writes, and the hash of what is there."""

    def __init__(self, path: Path, file: FileIO, size: int) -> None:
        self.path = path
        self.file = file
        self.size = size
        self.hash = sha256(file, size)
        file.truncate(size)

    def append(self, body: bytes) -> None:
        self.hash.update(body)
        write_all(self.file.fileno(), body)
        self.size += len(body)

    def give_up(self) -> None:
        """Remove what has come, which would keep a full disk full."""
        with self.file:
            remove(self.path)


class Blobs:
    """Bytes under their SHA-256.

    One that comes in order is a `.part` until it is whole and goes on where it broke. A second agent that is sent it
    writes a part of its own and copies what the first one has, whose line may be dead without its knowing. One that
    comes over several lines is in `.blocks`, in any order, and `.here` has a byte for each block that is there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uploads: dict[str, Upload] = {}
        self.doubted: set[str] = set()
        """Blobs whose beginning here was not theirs: they come anew from their first byte."""

    def path(self, digest: str) -> Path:
        if not isinstance(digest, str) or not DIGEST.match(digest):
            raise Refused(f"not a digest: {digest!r}")
        return self.folder / digest

    def part(self, digest: str) -> Path:
        """The first part of a blob that no other process writes."""
        names = (self.path(digest).with_suffix(f".part{number or ''}") for number in itertools.count())
        return next(name for name in names if not is_held(name))

    def longest(self, digest: str) -> tuple[int, Path]:
        """The size of a blob's longest part, also of one that another process writes, and where it is."""
        parts = [(0, self.path(digest))]
        for part in self.folder.glob(f"{digest}.part*"):
            with contextlib.suppress(FileNotFoundError):  # it is whole by now
                parts.append((part.stat().st_size, part))
        return max(parts)

    def stat(self, digest: str) -> Header:
        """Whether a blob is whole, else how much of its beginning is here, or which of its blocks are `missing`."""
        path = self.path(digest)
        if path.exists():
            return {"whole": True, "size": path.stat().st_size}
        with contextlib.suppress(FileNotFoundError):
            return {"whole": False, "size": 0, "missing": self.missing(digest)}
        if digest in self.uploads:
            return {"whole": False, "size": self.uploads[digest].size}
        return {"whole": False, "size": 0 if digest in self.doubted else self.longest(digest)[0]}

    def put(self, digest: str, size: int, offset: int, body: bytes) -> Header:
        """Write at `offset`, not past the end of what is here; verify and rename when `size` is reached."""
        path = self.path(digest)
        upload = self.uploads.pop(digest, None)  # one that fails is begun again from what it wrote
        if path.exists():
            if upload:
                upload.file.close()
                remove(upload.path)
            return self.stat(digest)
        if upload is None or upload.size != offset:
            upload = self.open(digest, offset, upload)
        try:
            upload.append(body)
            if upload.size < size:
                self.uploads[digest] = upload
                return {"whole": False, "size": upload.size}
            with upload.file:
                if upload.size > size or upload.hash.hexdigest() != digest:
                    remove(upload.path)
                    self.doubted.add(digest)
                    raise Refused(f"the bytes are not those of {digest[:12]}")
                os.fsync(upload.file.fileno())
                upload.path.rename(path)
        except OSError:
            upload.give_up()
            raise
        return {"whole": True, "size": size}

    def open(self, digest: str, offset: int, before: Upload | None = None) -> Upload:
        """An upload that goes on at `offset`, which must not be past what is here."""
        if before:
            before.file.close()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            path = self.part(digest)
            file = open_own(path, "a+b", buffering=0)
            with contextlib.suppress(BlockingIOError):  # another agent was faster
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_at(file, path):
                    break
            file.close()
        if 0 <= offset <= os.fstat(file.fileno()).st_size:
            return Upload(path, file, offset)
        have, source = self.longest(digest)
        if not 0 <= offset <= have:
            with file:
                if not os.fstat(file.fileno()).st_size:  # it was made by this very look
                    remove(path)
            raise Refused(f"offset {offset} is past the {have} bytes that are here")
        upload = Upload(path, file, 0)
        try:
            with open_own(source, buffering=0) as other:
                for piece in iter(lambda: other.read(min(CHUNK, offset - upload.size)), b""):
                    upload.append(piece)
        except OSError:
            upload.give_up()
            raise
        if upload.size < offset:
            file.close()
            raise Refused("a file became shorter")
        return upload

    def split(self, digest: str, size: int) -> Header:
        """Take a blob's blocks in any order from now on, also from other agents; what is here already stays."""
        path = self.path(digest)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.folder.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = self.stat(digest)
            if not known["whole"] and "missing" not in known:
                self.check_room(size - known["size"])
                upload = self.open(digest, known["size"], self.uploads.pop(digest, None))
                with upload.file:
                    upload.file.truncate(size)
                    upload.path.rename(path.with_suffix(".blocks"))
                    count, have = -(-size // BLOCK), min(known["size"], size) // BLOCK
                    write_whole(path.with_suffix(".here"), b"\1" * have + bytes(count - have), durable=False)
                known = self.stat(digest)
        return known

    def missing(self, digest: str) -> list[list[int]]:
        """The blocks that are not here, as [first, one past the last]; raises FileNotFoundError unless it was split."""
        with open_own(self.path(digest).with_suffix(".here")) as file:
            here = file.read()
        return [list(match.span()) for match in re.finditer(rb"\0+", here)]

    def put_block(self, digest: str, offset: int, body: bytes) -> Header:
        """Write one block of a blob that was split."""
        blocks = self.blocks(digest, fcntl.LOCK_SH)
        if blocks is None:
            return self.stat_whole(digest)
        with blocks as file, open_own(self.path(digest).with_suffix(".here"), "r+b") as here:
            size = os.fstat(file.fileno()).st_size
            if offset % BLOCK or not 0 <= offset < size or len(body) != min(BLOCK, size - offset):
                raise Refused(f"{len(body)} bytes at {offset} are not a block of {size} bytes")
            file.seek(offset)
            try:
                write_all(file.fileno(), body)
            except OSError:
                self.remove(digest)  # it would keep a full disk full
                raise
            here.seek(offset // BLOCK)
            here.write(b"\1")
        return {}

    def seal(self, digest: str) -> Header:
        """Verify a blob whose blocks are all here, and give it its name."""
        path = self.path(digest)
        blocks = self.blocks(digest, fcntl.LOCK_EX)
        if blocks is None:
            return self.stat_whole(digest)
        with blocks as file:
            if self.missing(digest):
                return self.stat(digest)
            is_right = sha256(file, os.fstat(file.fileno()).st_size).hexdigest() == digest
            os.fsync(file.fileno())
            path.with_suffix(".blocks").rename(path) if is_right else remove(path.with_suffix(".blocks"))
            remove(path.with_suffix(".here"))
        if not is_right:
            self.doubted.add(digest)
            raise Refused(f"the bytes are not those of {digest[:12]}")
        return self.stat(digest)

    def stat_whole(self, digest: str) -> Header:
        """What there is to say of a blob that does not come in blocks: another agent may have sealed it."""
        known = self.stat(digest)
        if not known["whole"]:
            raise Refused(f"{digest[:12]} does not come in blocks")
        return known

    def blocks(self, digest: str, lock: int) -> FileIO | None:
        """The file of a blob that was split, locked: nobody writes to it once it is verified. None where it is gone."""
        path = self.path(digest).with_suffix(".blocks")
        try:
            file: FileIO = open_own(path, "r+b", buffering=0)
        except FileNotFoundError:
            return None
        fcntl.flock(file, lock)
        if is_at(file, path):
            return file
        file.close()
        return None

    def check_room(self, size: int) -> None:
        """Raise Refused where so many bytes do not fit: better before they come than after most of them have."""
        disk = os.statvfs(self.folder)
        free = disk.f_bavail * disk.f_frsize
        if disk.f_blocks and size > free:  # some file systems tell nothing
            raise Refused(f"{os.strerror(errno.ENOSPC)}: {size} bytes are to come, and {free} are free")

    def verify(self, digest: str) -> bool:
        """Whether a blob is here to the bit; one that was damaged on the disk is removed, so that it comes again."""
        path = self.path(digest)
        try:
            with open_own(path, buffering=0) as file:
                is_right = sha256(file, os.fstat(file.fileno()).st_size).hexdigest() == digest
                if not is_right and is_at(file, path):
                    remove(path)
        except FileNotFoundError:
            return False
        return bool(is_right)

    def want(self, digest: str) -> None:
        """Note that a blob that this machine might have made has to be sent after all."""
        write_whole(self.path(digest).with_suffix(".wanted"), b"", durable=False)

    def is_wanted(self, digest: str) -> bool:
        return self.path(digest).with_suffix(".wanted").exists()

    def remove(self, digest: str) -> None:
        self.path(digest)
        for pattern in (f"{digest}*", f".{digest}*"):
            for path in self.folder.glob(pattern):
                remove(path)


class Run:
    """One run's folder: its tasks, its queue and the worker that serves them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.queue = path / "queue"
        self.children = path / "children"
        self.worker: Popen[bytes] | None = None

    @classmethod
    def claim(cls, home: Path, name: str, identity: str) -> Run:
        """The run's own folder on this machine: two runs of one name get two, and so do two machines with one home."""
        owner = f"{identity} {os.uname().nodename}"

        def fill(folder: Path) -> None:
            for part in ("queue", "children"):
                (folder / part).mkdir()
            write_whole(folder / "id", owner.encode())  # a run that lost it would do its finished tasks again

        (home / "runs").mkdir(mode=0o700, exist_ok=True)
        for candidate in (name, f"{name}.{hash_of(owner.encode()).hexdigest()[:8]}"):
            if not RUN.match(candidate) or ".." in candidate:
                raise Refused(f"not a run name: {candidate!r}")
            run = cls(home / "runs" / candidate)
            if not run.path.exists():
                make_folder(run.path, fill)
                sync_folder(run.path.parent)
            if tail(run.path / "id", 1000) == owner:
                return run
        raise Refused(f"another run is called {name} here")

    def folder(self, key: str) -> Path:
        name = key.replace("/", "-")
        if not FOLDER.match(name) or ".." in name or key_of(name) != key:
            raise Refused(f"not a task key: {key!r}")
        path = self.path / name
        if path.is_symlink():
            raise Refused(f"the folder of {key} is a link")
        return path

    def check(self) -> None:
        """Raise Refused where one of its folders is a link: what is done there would be done elsewhere."""
        for folder in (self.path, self.queue, self.children):
            if folder.is_symlink():
                raise Refused(f"{folder} is a link")

    def folders(self) -> list[Path]:
        """The folders of all tasks; none where another agent has removed the run."""
        return sorted(path for path in self.path.glob("*") if FOLDER.match(path.name) and not path.is_symlink())

    def start_worker(
        self, home: Path, spec: Header, confine: Callable[[list[str]], Confined] = lambda argv: (argv, {}, None)
    ) -> bool:
        """Start a detached worker unless one lives; returns whether one was started.

        `confine` gives the command by which it runs, what goes into its environment, and what it does before it runs.
        """
        import subprocess

        if not DIGEST.match(spec["bundle"]):
            raise Refused(f"not a digest: {spec['bundle']!r}")
        bundle = home / "bundle" / spec["bundle"]
        paths = [str(bundle / "project"), str(bundle)]
        python = str(Environments(home).python(spec["environment"])) if "environment" in spec else spec["python"]
        with open_own(self.path / "worker.lock", "ab", below=1) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if self.worker is not None:
                self.worker.wait()  # it has let go of the lock, so it is at its end
            for folder in (self.path, home / "runs", home / "bundle"):
                sweep(folder)
            # The worker inherits the lock: it is held, and its number known, from the worker's first moment on.
            code = f"from fedctl.node.worker import main; main({str(self.path)!r}, {lock.fileno()})"
            remove(self.path / "worker.pid")
            write_whole(self.path / "worker.json", json.dumps(spec).encode(), durable=False)
            command, words, preexec = confine([python, "-c", f"import sys; sys.path[0:1] = {paths!r}; {code}"])
            with open_own(self.path / "worker.log", "ab", below=1) as log:
                self.worker = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=[lock.fileno()],
                    cwd=spec["cwd"] if Path(spec["cwd"]).is_dir() else Path.home(),
                    env=dict(os.environ, PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1", **words),
                    preexec_fn=preexec,  # noqa: PLW1509  an agent has no threads
                )
            note(self.worker, self.path / "worker.pid")
        return True

    def worker_lives(self) -> bool:
        if self.worker is not None:
            self.worker.poll()  # it is this process that must reap it
        return is_held(self.path / "worker.lock")

    def accept(self, key: str, task: Header, owner: Header | None = None) -> bool:
        """Put a task into the worker's queue, at most once a key; returns whether it is new.

        One that is here and was not begun is queued again; one that cannot be read, as a loss of power leaves it, is
        written anew. What the node's owner asks of the worker stands beside the task as `owner.json`.
        """
        folder, content = self.folder(key), json.dumps(task).encode()

        def fill(temporary: Path) -> None:
            write_whole(temporary / "task.json", content, durable=False)
            if owner is not None:
                write_whole(temporary / "owner.json", json.dumps(owner).encode(), durable=False)

        is_new = not folder.is_dir() and make_folder(folder, fill)
        if not is_new:
            try:
                parse((folder / "task.json").read_bytes())
            except (FileNotFoundError, ValueError):
                write_whole(folder / "task.json", content)
        if is_new or not (folder.name in self.queued() or is_begun(folder)):  # asked in the order in which it changes
            self.enqueue(folder.name)
        return is_new

    def enqueue(self, name: str) -> None:
        (self.queue / f"{time.time_ns():020d}-{name}").touch()
        self.wake()

    def wake(self) -> None:
        """Nudge the worker; it looks by itself now and then, so a missed nudge costs only time."""
        with contextlib.suppress(OSError):
            fifo = os.open(self.path / "wake", os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            with os.fdopen(fifo, "wb", buffering=0) as wake:
                wake.write(b"!")

    def queued(self) -> set[str]:
        """The folders of the tasks that nobody has begun yet."""
        return {entry.name.partition("-")[2] for entry in self.queue.iterdir()}

    def unqueue(self, key: str) -> None:
        name = self.folder(key).name
        for entry in self.queue.iterdir():
            if entry.name.partition("-")[2] == name:
                remove(entry)

    def result(self, key: str) -> Header | None:
        """The finished task's result, or None; an empty one, which the coordinator refuses, where it is damaged."""
        try:
            with open_own(self.folder(key) / "result.json", below=2) as file:
                return parse(file.read(LONGEST_HEADER // 2))
        except OSError as error:
            return {} if error.errno == errno.ELOOP else None
        except ValueError:
            return {}

    def miss(self, key: str) -> int:
        """Count that a task left the queue and was not begun; returns how often it did."""
        with open_own(self.folder(key) / "misses", "ab", below=2, buffering=0) as misses:
            misses.write(b".")
            return int(misses.tell())

    def finish(self, key: str, result: Header) -> None:
        """Give a task its result, for good."""
        write_whole(self.folder(key) / "result.json", json.dumps(result).encode())
        sync_folder(self.path)

    def fail(self, key: str, reason: str, *, retryable: bool) -> bool:
        """Give a task that no process works on its result: a failure. False when it has one or is held."""
        folder = self.folder(key)
        with open_own(folder / "lock", "ab", below=2) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            if (folder / "result.json").exists():
                return False
            self.give_up(key, reason, retryable=retryable)
        return True

    def give_up(self, key: str, reason: str, *, retryable: bool) -> None:
        """Give a task whose lock one holds a failure as its result, and the disk the room that its update took."""
        folder = self.folder(key)
        for path in folder.iterdir():
            if path.name.startswith((".", "update.safetensors")):
                discard(path)
        if (folder / "cancelled").exists():
            reason, retryable = "cancelled", False
        detail = tail(folder / "train.log", 4000) or tail(self.path / "worker.log", 4000)
        self.finish(key, failed(key, reason, detail, retryable=retryable))
        self.unqueue(key)

    def cancel(self, key: str) -> None:
        """Stop a task, whether it waits or runs, and give it a result that says so."""
        folder = self.folder(key)
        if not folder.is_dir():
            return
        with contextlib.suppress(OSError):  # a disk that takes nothing keeps nobody from ending it
            open_own(folder / "cancelled", "ab", below=2).close()
            self.unqueue(key)
        deadline = time.monotonic() + END_S
        while not self.fail(key, "cancelled", retryable=False) and self.result(key) is None:
            if time.monotonic() > deadline:
                raise Refused(f"the process of {key} does not end")
            kill_holder(folder / "lock", folder / "pid")
            time.sleep(TICK_S)

    def stop(self) -> None:
        """End the worker and everything that it forked; what waits is begun only if it is asked for again."""
        with contextlib.suppress(OSError):  # gone, or not ours: what is at work ends all the same
            self.empty_queue()

        def kill(lock: Path) -> None:
            kill_holder(lock, self.path / "worker.pid" if lock.name == "worker.lock" else lock)

        end_all(self.held, kill)
        for folder in self.folders():
            if not (folder / "result.json").exists():
                for name in ("pid", "misses"):  # it was stopped on purpose, so it may be begun again
                    remove(folder / name)

    def empty_queue(self) -> None:
        """Take everything out of the queue; raises OSError where it is a link."""
        descriptor = os.open(self.queue, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(entry.name, dir_fd=descriptor)
        finally:
            os.close(descriptor)

    def held(self) -> list[Path]:
        """The locks of the processes that are at work: the worker's and its children's."""
        lives = [self.path / "worker.lock"] if self.worker_lives() else []
        return [*lives, *(child for child in self.children.glob("*") if is_held(child))]

    def owner(self) -> tuple[str, str]:
        """Whose run it is, and the machine that works on it: a home may be shared by several."""
        identity, _, machine = tail(self.path / "id", 1000).partition(" ")
        return identity, machine

    def digests(self, *, unfinished: bool = False) -> set[str]:
        """The blobs that this run's tasks name."""
        found: set[str] = set()
        for folder in self.folders():
            if not (unfinished and (folder / "result.json").exists()):
                try:
                    models = parse((folder / "task.json").read_bytes())["models"]
                    found.update(blob["digest"] for blob in models.values() if DIGEST.match(blob["digest"]))
                except (OSError, ValueError, KeyError, TypeError, AttributeError):
                    continue
        return found

    def bundle(self) -> str | None:
        try:
            with open_own(self.path / "worker.json", below=1) as file:
                digest = parse(file.read())["bundle"]
        except (OSError, ValueError, KeyError):
            return None
        return digest if DIGEST.match(digest) else None


def is_begun(folder: Path) -> bool:
    """Whether a process works on a task, or has worked on it."""
    return (folder / "pid").exists() or is_held(folder / "lock") or (folder / "result.json").exists()


def key_of(folder: str) -> str:
    """The key of a task by the name of its folder: `r0003-alice-a1` is `r0003/alice/a1`."""
    head, _, rest = folder.partition("-")
    return "/".join((head, *rest.rsplit("-", 1)))


def failed(key: str, reason: str, detail: str = "", *, retryable: bool) -> Header:
    """The result of a task that came to nothing."""
    nothing = {"examples": 0, "metrics": {}, "scores": {}, "update": None, "steps": 0, "partial": False, "fresh": False}
    nothing.update(
        {"seconds": 0.0, "accelerator": "", "ask_again_s": None, "message": {}, "privacy": {}, "tensors": []}
    )
    return {"key": key, **nothing, "error": reason, "detail": detail, "retryable": retryable}


def remove(path: Path) -> None:
    """Remove a file that another process may be removing too."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def discard(path: Path) -> None:
    """Remove a file or a folder that another agent may be removing too.

    A folder first gets a name that counts for nothing, so that half of it is never taken for the whole.
    """
    if not path.is_dir() or path.is_symlink():
        remove(path)
        return
    import shutil

    gone = path if path.name.startswith(".") else beside(path)
    with contextlib.suppress(FileNotFoundError):
        path.rename(gone)
    while gone.is_dir():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(gone)


class Environments:
    """The Python environments that were made here, each under the digest of what it was made from.

    `env/<digest>/ready` marks a whole one. Whoever makes one holds `env/<digest>.lock`; its log, and the reason where
    it failed, stand beside it. While one is made, `env/<digest>.asked-<identity>` says for which runs.
    """

    def __init__(self, home: Path, builder: Path | None = None) -> None:
        self.home = home
        self.folder = home / "env"
        self.builder = builder
        self.pythons: dict[tuple[str, bool], Header] = {}
        self.builders: list[Popen[bytes]] = []

    def path(self, digest: str) -> Path:
        if not isinstance(digest, str) or not DIGEST.match(digest):
            raise Refused(f"not a digest: {digest!r}")
        return self.folder / digest

    def python(self, digest: str) -> Path:
        return self.path(digest) / "bin" / "python"

    def is_ready(self, digest: str) -> bool:
        return self.python(digest).exists() and (self.path(digest) / "ready").exists()

    def find(self, needs: Header) -> Header:
        """Where the environment that is asked for is, or would be: digest, version and interpreter."""
        wanted, is_online = needs["python"], not needs["wheels"]
        if not isinstance(wanted, str) or not VERSION.match(wanted):
            raise Refused(f"not a version of Python: {wanted!r}")
        if (wanted, is_online) not in self.pythons:
            self.pythons[wanted, is_online] = find_python(wanted, is_online=is_online)
        found = self.pythons[wanted, is_online]
        system, wheels = os.uname(), dict(sorted(needs["wheels"].items()))
        key = [found["version"], system.sysname, system.machine, needs["requirements"], wheels]
        return {**found, "digest": hash_of(json.dumps(key).encode()).hexdigest()}

    def make(self, needs: Header, bundle: Path, blobs: Blobs, asker: str) -> str:
        """Start making an environment for a run unless it is there, or on its way; returns its digest."""
        import subprocess

        found = self.find(needs)
        base = self.path(found["digest"])
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.mark(base.name, asker).touch()
        with base.with_suffix(".lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return base.name
            if self.is_ready(base.name):
                remove(self.mark(base.name, asker))
                return base.name
            for name in needs["wheels"]:
                if name != Path(name).name or not name.endswith(".whl"):
                    raise Refused(f"not the name of a wheel: {name!r}")
            spec = {
                **found,
                "requirements": needs["requirements"],
                "wheels": {name: str(blobs.path(digest)) for name, digest in needs["wheels"].items()},
                "uv": which("uv"),
                "machine": os.uname().nodename,
            }
            for old in (".failed", ".pid"):  # that number may be a stranger's by now
                remove(base.with_suffix(old))
            write_whole(base.with_suffix(".json"), json.dumps(spec).encode(), durable=False)
            builder = self.builder or bundle / "fedctl" / "node" / "environment.py"
            with base.with_suffix(".log").open("wb") as log:
                # The builder inherits the lock and hands it on to the installer, so that no two ever write there.
                process = subprocess.Popen(
                    [sys.executable, "-I", str(builder), str(base.with_suffix(".json"))],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=[lock.fileno()],
                    cwd=self.folder,
                )
            note(process, base.with_suffix(".pid"))
            self.builders.append(process)
        return base.name

    def is_making(self, digest: str) -> bool:
        self.builders = [builder for builder in self.builders if builder.poll() is None]
        return is_held(self.path(digest).with_suffix(".lock"))

    def held(self) -> list[Path]:
        """The locks of all environments that are being made, also for others."""
        return [lock for lock in self.folder.glob("*.lock") if is_held(lock)]

    def mark(self, digest: str, asker: str) -> Path:
        """What says that a run asks for an environment that is being made."""
        if not RUN.match(asker):
            raise Refused(f"not a run's identity: {asker!r}")
        return self.path(digest).with_suffix(f".asked-{asker}")

    def askers(self, digest: str) -> set[str]:
        """The runs that ask for an environment that is being made."""
        return {mark.name.partition(".asked-")[2] for mark in self.folder.glob(f"{digest}.asked-*")}

    def withdraw(self, asker: str) -> None:
        """A run asks for nothing more: the making ends of what no other run asks for."""
        alone = []
        for lock in self.held_here():
            askers = self.askers(lock.stem)
            if asker in askers:
                remove(self.mark(lock.stem, asker))  # first, so that no agent of that run has it made anew
                alone += [lock] if len(askers) == 1 else []
        self.stop(alone)

    def held_here(self) -> list[Path]:
        """The locks of those that this machine makes: a home may be shared by several."""
        here = []
        for lock in self.held():
            with contextlib.suppress(OSError, ValueError):
                spec = parse(lock.with_suffix(".json").read_bytes())
                here += [lock] if spec.get("machine") == os.uname().nodename else []
        return here

    def stop(self, locks: list[Path]) -> None:
        """End the making of these environments."""
        end_all(lambda: list(filter(is_held, locks)), lambda lock: kill_holder(lock, lock.with_suffix(".pid")))

    def newest_line(self, digest: str) -> str:
        lines = tail(self.path(digest).with_suffix(".log"), 2000).split("\n")[:-1]
        return next((line.strip()[:500] for line in reversed(lines) if line.strip()), "")

    def end(self, digest: str) -> Header | None:
        """How the making came out: the facts of a whole one, or what went wrong; None where nobody lived to say."""
        is_ready = self.is_ready(digest)
        path = self.path(digest) / "ready" if is_ready else self.path(digest).with_suffix(".failed")
        try:
            return parse(path.read_bytes())
        except (OSError, ValueError):
            return None


def which(program: str) -> str | None:
    """A program's path, also where a login shell would look and a bare command does not."""
    import shutil

    own = [str(Path.home() / place) for place in (".local/bin", ".cargo/bin")]
    places = (os.environ.get("PATH", os.defpath), *own, "/usr/local/bin", "/opt/homebrew/bin")
    return shutil.which(program, path=os.pathsep.join(places))


def find_python(wanted: str, *, is_online: bool) -> Header:
    """The Python to make an environment of: that version (X.Y) if it can be had, else this one, else the newest.

    `python` is its path, None where uv is to fetch it.
    """
    own = "{}.{}".format(*sys.version_info)
    if own == wanted:
        return {"version": own, "python": sys.executable}
    path = runs_as(wanted)
    if path:
        return {"version": wanted, "python": path}
    if is_online and which("uv"):
        return {"version": wanted, "python": None}
    if sys.version_info >= LEAST_PYTHON:
        return {"version": own, "python": sys.executable}
    for minor in range(14, 9, -1):
        path = runs_as(f"3.{minor}")
        if path:
            return {"version": f"3.{minor}", "python": path}
    raise Refused("there is no Python of 3.10 or newer, and no uv that could fetch one")


def runs_as(version: str) -> str | None:
    """The path of the Python of that version, if there is one that runs."""
    path = which(f"python{version}")
    code = "import sys; sys.exit('{}.{}'.format(*sys.version_info) != sys.argv[1])"
    if not path:
        return None
    try:
        output_of([path, "-c", code, version], PROBE_S)
    except OSError:
        return None
    return path


class Ledger:
    """What has left this machine, an entry a line, each written before its bytes go; append-only.

    An entry is an object that ends in `prev`, the hash of the one before it, and `hash`: the SHA-256 of `prev` and of
    the digest of all that stands before `prev` on the line. So whoever knows only the digests of entries, or the hash
    of one of them, finds out what was changed, left out, put in or moved. Any number of agents append, one at a time.
    A durable one survives a loss of power to its last entry; others wait for no disk, and may lose their last ones.
    """

    def __init__(self, path: Path, *, to: str = "", is_durable: bool = False) -> None:
        self.path = path
        self.to = to
        self.is_durable = is_durable
        self.seen = (-1, -1)
        """The file and its size after the last look at it; nobody has appended since where it still has them."""
        self.number = 0
        self.hash = BEFORE_ALL

    def append(self, *entries: Header) -> Header:
        """Write them down and return the last one's number and hash; raises Refused where that cannot be done."""
        try:
            with self.locked() as file:
                state = os.fstat(file.fileno())
                lines = [] if self.seen == (state.st_ino, state.st_size) else self.catch_up(file)
                end, number, prev = os.fstat(file.fileno()).st_size, self.number, self.hash
                now = time.time()
                at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
                written = b""
                for entry in (*lines, *entries):
                    number += 1
                    to = {"to": self.to} if self.to else {}
                    body = json.dumps({"n": number, "at": at, **entry, **to}, separators=(",", ":")).encode()[:-1]
                    before, prev = prev, chained(prev, hash_of(body).hexdigest())
                    written += body + f',"prev":"{before}","hash":"{prev}"}}\n'.encode()
                try:
                    write_all(file.fileno(), written)
                    if self.is_durable:
                        os.fsync(file.fileno())
                except OSError:
                    file.truncate(end)
                    raise
                self.seen, self.number, self.hash = (state.st_ino, end + len(written)), number, prev
        except OSError as error:
            raise Refused(f"what leaves cannot be written down: OSError: {error}") from error
        return {"n": number, "hash": prev}

    @contextlib.contextmanager
    def locked(self) -> Iterator[FileIO]:
        """The file, made where there is none, for this process alone."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "r+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not is_at(file, self.path):
                    continue
                if self.is_durable and self.seen[0] == -1:
                    sync_folder(self.path.parent)
                yield file
                return

    def catch_up(self, file: FileIO) -> list[Header]:
        """Learn the last entry. What stands behind it is torn, as a loss of power leaves it.

        That is kept aside and taken off; returns the entries that say so.
        """
        self.number, self.hash, end = last_entry(file)
        size = os.fstat(file.fileno()).st_size
        if end == size:
            return []
        torn = os.pread(file.fileno(), size - end, end)
        aside = self.path.with_name(f"{self.path.name}.torn-{time.time_ns()}")
        write_whole(aside, torn)
        aside.chmod(0o600)
        file.truncate(end)
        return [{"kind": "torn", "size": len(torn), "sha256": hash_of(torn).hexdigest(), "kept": aside.name}]

    def page(self, identity: str, offset: int, *, is_whole: bool) -> tuple[bytes, int | None]:
        """A run's own entries from that offset on, as they stand there, and where to go on; None at the end.

        Of others' entries, also of other keys', the whole chain has but the digests, and an empty line for one that is
        none.
        """
        marks = [b'"identity":%s,' % json.dumps(identity).encode()]
        marks += [b',"to":%s,"prev":' % json.dumps(self.to).encode()] if self.to else []
        page, size = [], 0
        for line, match in entry_lines(self.path, offset):
            offset += len(line)
            is_own = match is not None and all(mark in line for mark in marks)
            if is_own or is_whole:
                others = hash_of(line[: match.start()]).hexdigest().encode() + b"\n" if match else b"\n"
                page.append(line if is_own else others)
                size += len(page[-1])
                if size >= PAGE:
                    return b"".join(page), offset
        return b"".join(page), None


def chained(prev: str, digest: str) -> str:
    """The hash of a ledger's entry, by the hash of the one before it and the digest of its own words."""
    return str(hash_of((prev + digest).encode()).hexdigest())


def last_entry(file: FileIO) -> tuple[int, str, int]:
    """The number, the hash and the end of the last whole entry of a ledger; of none where it has none."""
    size, length = os.fstat(file.fileno()).st_size, 4096
    while True:
        begin = max(0, size - length)
        content = os.pread(file.fileno(), size - begin, begin)
        for match in reversed(list(CHAINED.finditer(content))):
            first = content.rfind(b"\n", 0, match.start()) + 1
            number = NUMBERED.match(content, first) if first or not begin else None
            if number:
                return int(number[1]), match[2].decode(), begin + match.end()
        if not begin:
            return 0, BEFORE_ALL, 0
        length *= 4


def entry_lines(path: Path, offset: int = 0) -> Iterator[tuple[bytes, re.Match[bytes] | None]]:
    """The whole lines of a ledger, and where each is chained; None for one that is no entry. None where it is gone."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if line.endswith(b"\n"):
                yield line, CHAINED.search(line, max(0, len(line) - 200))


def examine(path: Path) -> tuple[Header | None, str | None]:
    """The number and hash of a ledger's last entry, None for none; and the first thing that is wrong with its chain."""
    number, prev, trouble = 0, BEFORE_ALL, None
    for line, match in entry_lines(path):
        numbered = NUMBERED.match(line)
        if match is None or numbered is None:
            trouble = trouble or f"the line after entry {number} is no entry"
            continue
        found, digest = int(numbered[1]), hash_of(line[: match.start()]).hexdigest()
        trouble = trouble or misfit(number, prev, found, digest, match[1].decode(), match[2].decode())
        number, prev = found, match[2].decode()
    return ({"n": number, "hash": prev} if number else None), trouble


def misfit(number: int, hash_before: str, found: int, digest: str, prev: str, hash_here: str) -> str | None:
    """What is wrong with the entry that stands behind entry `number` of a ledger; None where it is right."""
    if found > number + 1:
        return f"entry {number + 1} is missing" + (f", and all up to {found - 1}" if found > number + 2 else "")
    if found <= number:
        return f"entry {found} stands behind entry {number}"
    if chained(prev, digest) != hash_here:
        return f"entry {found} was changed"
    return f"entry {found} does not lead on from entry {number}" if prev != hash_before else None


def unfit(result: Header) -> str | None:
    """Why a result does not leave: it is larger than any has to be; None where it may."""
    scores = result.get("scores")
    named = [result, *(scores.values() if isinstance(scores, dict) else ())]
    for metrics in (one.get("metrics") or {} for one in named if isinstance(one, dict)):
        if len(metrics) > MOST_METRICS:
            return f"it has {len(metrics)} metrics, and at most {MOST_METRICS} may leave"
        longest = max(map(str, metrics), key=len, default="")
        if len(longest) > LONGEST_NAME:
            return f"the metric {longest[:40]}... has a name of more than {LONGEST_NAME} characters"
    size = len(canonical(result))
    return f"its result has {size} bytes, and at most {MOST_RESULT} may leave" if size > MOST_RESULT else None


def canonical(value: Header) -> bytes:
    """The one form of a JSON object whose digest stands in a ledger."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def digested(content: bytes) -> Header:
    return {"size": len(content), "sha256": hash_of(content).hexdigest()}


def tensor_names(result: Header, file: FileIO) -> Header | None:
    """How many tensors an update brings, and a digest of their sorted names; None where nothing tells."""
    names = result.get("tensors")
    if not names:
        try:
            size = int.from_bytes(os.pread(file.fileno(), 8, 0), "little")
            names = set(parse(os.pread(file.fileno(), min(size, LONGEST_HEADER), 8))) - {"__metadata__"}
        except ValueError:  # packed by a codec
            return None
    return {"count": len(names), "sha256": hash_of("\n".join(sorted(map(str, names))).encode()).hexdigest()}


class Told:
    """What was told of something line by line, to be written down at its end."""

    def __init__(self) -> None:
        self.lines = 0
        self.size = 0
        self.hash: Any = None

    def add(self, line: Header) -> None:
        content = canonical(line) + b"\n"
        self.hash = self.hash or hash_of()
        self.hash.update(content)
        self.lines += 1
        self.size += len(content)

    def entries(self, about: Header) -> list[Header]:
        """The one entry that says so; none where nothing was told."""
        if not self.lines:
            return []
        return [{**about, "lines": self.lines, "size": self.size, "sha256": self.hash.hexdigest()}]


class Watch:
    """What the agent remembers of a task that it watches."""

    def __init__(self, task: Header, worker: Header) -> None:
        self.task = task
        self.worker = worker
        self.offset = 0
        self.told = Told()
        self.is_revived = False
        self.is_missed = False


class Making:
    """What the agent remembers of an environment that it sees made."""

    def __init__(self, needs: Header, bundle: Path, asker: str) -> None:
        self.needs = needs
        self.bundle = bundle
        self.asker = asker
        self.line = ""
        self.told = Told()
        self.is_revived = False


class Agent:
    """Answers requests and watches the tasks that were started or adopted over this line."""

    def __init__(self, home: Path, send: Callable[[Header, bytes | Slice], None]) -> None:
        self.home = home
        self.send = send
        # One that was there may be the user's own, for other files too: its rights stay, and all in it gets ours.
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.blobs = Blobs(home / "blobs")
        self.environments = Environments(home, self.builder())
        self.runs: dict[str, Run] = {}
        self.watched: dict[tuple[str, str], Watch] = {}
        self.making: dict[str, Making] = {}
        self.ledger = self.open_ledger()
        self.reads: dict[tuple[str, str], tuple[tuple[int, ...], int]] = {}
        """Of updates that leave piece by piece: the file as it was when it was written down, and how far it left."""
        self.looked_at = 0.0

    def answer(self, header: Header, body: bytes) -> None:
        """Answer one request; a refusal is an answer too. An operation finds and leaves a body under "body"."""
        try:
            answer = self.operation(header.get("op"))({**header, "body": body}) or {}
        except Refused as refusal:
            answer = {"error": str(refusal)}
        except Exception as error:  # whatever one request asks for, the tasks of the others are watched on
            answer = {"error": f"{type(error).__name__}: {error}"}
        data = answer.pop("body", b"")
        if "error" in answer or "declined" in answer or header.get("op") in TELLING:
            answer = self.noted(header, answer)
        self.send({"re": header.get("id"), **answer}, data)

    def operation(self, name: object) -> Callable[[Header], Header | None]:
        """What answers requests of that name; raises Refused where there is none."""
        operation: Callable[[Header], Header | None] | None = getattr(self, f"do_{name}", None)
        if operation is None:
            raise Refused(f"unknown operation: {name!r}")
        return operation

    def builder(self) -> Path | None:
        """The program that makes environments; None: the one that each bundle brings."""
        return None

    def open_ledger(self) -> Ledger:
        """Where what leaves is written down. Without an owner who rules here, thousands of nodes need not sync it."""
        return Ledger(self.home / "ledger.jsonl")

    def noted(self, header: Header, answer: Header) -> Header:
        """An answer that tells of this machine, written down; a refusal instead of one that cannot be."""
        op, identity = str(header.get("op"))[:50], str(header.get("identity") or "")[:LONGEST_NAME]
        try:
            kind = {"kind": "answer", "op": op}
            if op == "hello":
                asker = {name: str(header.get(name) or "")[:LONGEST_NAME] for name in ("version", "agent")}
                kind = {"kind": "facts", **asker}
            self.ledger.append({**kind, "identity": identity, **digested(canonical(answer))})
        except Refused as refusal:
            return {"error": str(refusal)}
        return answer

    def about(self, kind: str, identity: str, key: str) -> Header:
        """How an entry about a task begins."""
        return {"kind": kind, "run": self.runs[identity].path.name, "identity": identity, "task": key}

    def tell(self, identity: str, key: str, result: Header, told: Told | None = None) -> Header:
        """A result as it leaves and its entry in the ledger, which also has what was `told` of the task before.

        One that cannot be written down stays here, and leaves as a failure that says so.
        """
        run = self.runs[identity]
        result = self.outgoing(run, key, result)
        trouble = unfit(result)
        if trouble:
            result = failed(key, trouble, retryable=False)
        words = str(result.get("error") or "") + str(result.get("detail") or "")
        entry = {
            **self.about("result", identity, key),
            **digested(canonical(result)),
            **{name: result.get(name) for name in ("examples", "metrics", "scores", "privacy")},
            "error": len(words),
            "message": digested(json.dumps(result["message"]).encode()) if result.get("message") else None,
        }
        try:
            before = told.entries(self.about("progress", identity, key)) if told else []
            return {"result": result, "ledger": self.ledger.append(*before, entry)}
        except Refused as refusal:
            return {"result": failed(key, str(refusal), retryable=True), "ledger": None}

    def end(self) -> None:
        """The line is at its end: write down what was told of tasks that go on."""
        for (identity, key), watch in self.watched.items():
            with contextlib.suppress(Refused):
                told = watch.told.entries(self.about("progress", identity, key))
                if told:
                    self.ledger.append(*told)

    def run(self, header: Header) -> Run:
        identity = header["identity"]
        run = self.runs.get(identity)
        if run is None or not run.path.is_dir():
            run = self.runs[identity] = Run.claim(self.home, header["run"], identity)
        run.check()
        return run

    def all_runs(self) -> list[Run]:
        """Every run that has a folder here."""
        paths = [path.parent for path in sorted((self.home / "runs").glob("*/queue"))]
        return [Run(path) for path in paths if RUN.match(path.name) and not path.is_symlink()]

    def do_hello(self, header: Header) -> Header:
        """What the coordinator should know of this machine; sizes in bytes, `time` in seconds since 1970.

        With `needs`, also which of them are here already. The asker's version and the digest of its agent stand in the
        ledger.
        """
        system, disk = os.uname(), os.statvfs(self.home)
        return {
            "protocol": PROTOCOL,
            "python": sys.version.split()[0],
            "system": f"{system.sysname} {system.release} {system.machine}",
            "hostname": system.nodename,
            "cpus": cpus(),
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "disk_free": disk.f_bavail * disk.f_frsize,
            "time": time.time(),
            "home": str(self.home),
            "user": user(),
            "agent": Path(__file__).stem.rpartition("-")[2],
            "enrolled": False,
            "forced": "SSH_ORIGINAL_COMMAND" in os.environ,
            "memory_available": memory_available(),
            **({"has": self.stand(header["needs"])} if header.get("needs") else {}),
        }

    def stand(self, needs: Header) -> Header:
        """How the machine stands to what a run needs: a bundle, and an environment to make or a Python to use."""
        stand: Header = {"bundle": (self.home / "bundle" / self.blobs.path(needs["bundle"]).name).is_dir()}
        try:
            if "environment" in needs:
                found = self.environments.find(needs["environment"])
                stand["environment"] = {**found, "ready": self.environments.is_ready(found["digest"])}
            if "python" in needs:
                stand["python"] = self.do_probe(needs)
        except Refused as refusal:
            stand["error"] = str(refusal)
        return stand

    def do_may(self, header: Header) -> Header:
        return judge(header["when"])

    def do_stat(self, header: Header) -> Header:
        return {"blobs": {digest: self.blobs.stat(digest) for digest in header["digests"]}}

    def do_put(self, header: Header) -> Header:
        if header.get("block"):
            return self.blobs.put_block(header["digest"], header["offset"], header["body"])
        return self.blobs.put(header["digest"], header["size"], header["offset"], header["body"])

    def do_split(self, header: Header) -> Header:
        return self.blobs.split(header["digest"], header["size"])

    def do_seal(self, header: Header) -> Header:
        return self.blobs.seal(header["digest"])

    def do_unpack(self, header: Header) -> Header:
        """Unpack a bundle that is here as a blob; answers `missing` where it is not, or was damaged."""
        source, target = self.blobs.path(header["digest"]), self.home / "bundle" / header["digest"]
        target.parent.mkdir(mode=0o700, exist_ok=True)
        if not target.is_dir():
            if not self.blobs.verify(target.name):
                return {"missing": [target.name]}
            make_folder(target, lambda folder: unpack(source, folder))
        return {}

    def do_environment(self, header: Header) -> Header:
        """Make an environment, or adopt the making of it; its newest words and its end are pushed under its digest."""
        needs, bundle = header["environment"], self.home / "bundle" / self.blobs.path(header["bundle"]).name
        missing = [digest for digest in needs["wheels"].values() if not self.blobs.stat(digest)["whole"]]
        if missing or not bundle.is_dir():
            raise Refused("the wheels or the bundle are not here")
        digest = self.environments.make(needs, bundle, self.blobs, header["identity"])
        self.making[digest] = Making(needs, bundle, header["identity"])
        return {"digest": digest}

    def do_worker(self, header: Header) -> Header:
        return {"started": self.start_worker(self.run(header), header["worker"])}

    def start_worker(self, run: Run, spec: Header) -> bool:
        return run.start_worker(self.home, spec)

    def owners_words(self, task: Header) -> Header | None:  # noqa: ARG002  a guard has some
        """What the owner of this node asks of the worker for a task; None where nobody guards it."""
        return None

    def outgoing(self, run: Run, key: str, result: Header) -> Header:  # noqa: ARG002  a guard looks at all of them
        """A task's result as it leaves this machine."""
        return result

    def outgoing_progress(self, progress: Header) -> Header:
        """A line of a task's telemetry as it leaves this machine."""
        return progress

    def do_start(self, header: Header) -> Header:
        """Start a task or adopt it; from now on its progress and its end are pushed.

        One that the owner stopped is begun anew, for it was not finished.
        """
        run, key, task = self.run(header), header["key"], header["task"]
        result = run.result(key)
        was_stopped = result is not None and result.get("ask_again_s") is not None
        if result is not None and not was_stopped:
            return {"state": "done", **self.tell(header["identity"], key, result)}
        if task.get("when") and (was_stopped or not run.folder(key).is_dir()):
            verdict = judge(task["when"])
            if not verdict["may"]:
                return {"declined": verdict}
        missing = self.missing(task, header["worker"])
        if missing:
            return {"missing": missing}
        self.start_worker(run, header["worker"])  # first, so that nothing waits for one that cannot be
        if was_stopped:
            discard(run.folder(key))
        is_new = run.accept(key, task, self.owners_words(task))
        self.watched[header["identity"], key] = Watch(task, header["worker"])
        return {"state": "started" if is_new else "adopted"}

    def missing(self, task: Header, worker: Header) -> list[str]:
        """What a task needs and is not here: models, the bundle, the environment.

        The rest of a model is built here, and so is a model of its difference to one that is here: they are missing
        only where that was tried in vain.
        """
        models = task["models"]
        parts = [blob["digest"] for blob in (models.get("difference"), task.get("previous")) if blob]
        is_made = len(parts) == 2 and all(self.blobs.stat(digest)["whole"] for digest in parts)
        made = {"rest", *(("base", "global") if is_made else ())}
        missing = []
        for label, blob in models.items():
            is_needed = label != "difference" and (label not in made or self.blobs.is_wanted(blob["digest"]))
            if is_needed and not self.blobs.stat(blob["digest"])["whole"]:
                missing.append(blob["digest"])
        bundle = self.home / "bundle" / self.blobs.path(worker["bundle"]).name
        if not bundle.is_dir():
            missing.append(bundle.name)
        environment = worker.get("environment")
        if environment and not self.environments.is_ready(environment):
            missing.append(environment)
        return missing

    def do_read(self, header: Header) -> Header:
        """A piece of a task's file; the name is one of a few, never a path."""
        if header["name"] not in READABLE:
            raise Refused(f"not a readable file: {header['name']!r}")
        run = self.run(header)
        path = run.folder(header["key"]) / header["name"]
        try:
            file = open_own(path, below=2, buffering=0)
        except FileNotFoundError:
            if path.name == "train.log" and path.parent.is_dir():
                return {"size": 0}  # the task is here and has said nothing yet
            raise
        note = self.note_update if path.name == "update.safetensors" else self.note_log
        body = Slice(file, header["offset"], min(header["limit"], LONGEST_BODY))
        try:
            self.check_piece(run, header["key"], path.name, body.file)
            if len(body):
                note(header["identity"], header["key"], body)
        except (OSError, Refused):
            body.file.close()
            raise
        return {"size": body.whole, "body": body}

    def check_piece(self, run: Run, key: str, name: str, file: FileIO) -> None:
        """Raise Refused where a piece of a task's file may not leave: a guard looks at the very file that is sent."""

    def note_log(self, identity: str, key: str, body: Slice) -> None:
        """Write down that a piece of a task's log leaves, which only ever grows."""
        piece = os.pread(body.file.fileno(), len(body), body.offset)
        self.ledger.append({**self.about("log", identity, key), "offset": body.offset, **digested(piece)})

    def note_update(self, identity: str, key: str, body: Slice) -> None:
        """Write down that an update leaves, from this offset on: once for all pieces of it that follow in order.

        Raises Refused where it is not the one that its result names.
        """
        state = os.fstat(body.file.fileno())
        is_now = (state.st_ino, state.st_size, state.st_ctime_ns)  # which no program can set back
        was, end = self.reads.get((identity, key), ((), 0))
        if was != is_now or body.offset < end:
            run = self.runs[identity]
            result = run.result(key) or {}
            digest = sha256(body.file, body.whole).hexdigest()
            if (result.get("update") or {}).get("digest", digest) != digest:
                raise Refused(f"the update of {key} is not the one that its result names")
            self.ledger.append(
                {
                    **self.about("update", identity, key),
                    "offset": body.offset,
                    "size": body.whole,
                    "sha256": digest,
                    "tensors": tensor_names(result, body.file),
                    "code": run.bundle(),
                    "privacy": result.get("privacy"),
                }
            )
        self.reads[identity, key] = (is_now, body.offset + len(body))

    def do_ledger(self, header: Header) -> Header:
        """A page of what left of a run, from an `offset` on, and of the whole chain the digests where that `is_whole`.

        The first page also brings the chain's `head`, and what is wrong with it.
        """
        body, offset = self.ledger.page(header["identity"], header["offset"], is_whole=header["whole"])
        head, trouble = (None, None) if header["offset"] else examine(self.ledger.path)
        return {"head": head, "trouble": trouble, "offset": offset, "body": body}

    def do_release(self, header: Header) -> None:
        """The coordinator holds these tasks' updates now, and needs these models no more."""
        run = self.run(header)
        for key in header["keys"]:
            remove(run.folder(key) / "update.safetensors")
        if header["digests"]:
            needed = {digest for one in self.all_runs() for digest in one.digests(unfinished=True)}
            for digest in set(header["digests"]) - needed:
                self.blobs.remove(digest)

    def do_cancel(self, header: Header) -> None:
        self.run(header).cancel(header["key"])

    def do_list(self, header: Header) -> Header:
        """Every task of the run and its state: done, running, waiting or lost."""
        run = self.run(header)
        queued, lives = run.queued(), run.worker_lives()
        tasks = {}
        for folder in run.folders():
            done, running = (folder / "result.json").exists(), is_held(folder / "lock")
            waiting = lives and folder.name in queued
            tasks[folder.name] = "done" if done else "running" if running else "waiting" if waiting else "lost"
        return {"tasks": tasks, "worker": lives}

    def do_stop(self, header: Header) -> None:
        """End every process of a run, also the making of an environment that no other run asks for."""
        self.run(header).stop()
        self.environments.withdraw(header["identity"])
        self.watched = {place: watch for place, watch in self.watched.items() if place[0] != header["identity"]}

    def do_remove(self, header: Header) -> None:
        """Stop a run and remove its folder, and the blobs and the bundle that no other run names."""
        self.do_stop(header)
        run = self.runs.pop(header["identity"])
        digests = run.digests() | {digest for digest in header["digests"] if DIGEST.match(digest)}
        bundle = run.bundle()
        discard(run.path)
        for folder in ("runs", "bundle"):
            sweep(self.home / folder)
        for other in self.all_runs():
            digests -= other.digests()
            if other.bundle() == bundle:
                bundle = None
        for digest in digests:
            self.blobs.remove(digest)
        if bundle:
            discard(self.home / "bundle" / bundle)
            self.blobs.remove(bundle)

    def do_stop_all(self, header: Header) -> None:
        """End every process of the runs with these identities; refuses where others are at work, unless by force."""

        def is_stranger(identity: str) -> bool:
            return identity.partition("-")[0] not in header["identities"]

        here = [run for run in self.all_runs() if run.owner()[1] == os.uname().nodename and run.held()]
        strangers = [run.path.name for run in here if is_stranger(run.owner()[0])]
        if strangers and not header["force"]:
            raise Refused(f"a run of another federation is at work there: {', '.join(strangers)}")
        askers = {asker for lock in self.environments.held() for asker in self.environments.askers(lock.stem)}
        if any(map(is_stranger, askers)) and not header["force"]:
            raise Refused("an environment is being made there")
        for run in here:
            run.stop()
        for asker in askers:
            self.environments.withdraw(asker)
        self.environments.stop(self.environments.held_here())

    def do_remove_all(self, _: Header) -> None:
        """Remove all that fedctl made here, this very file last; what others put beside it stays, and its folder."""
        at_work = [f"run {run.path.name} on {run.owner()[1]}" for run in self.all_runs() if run.held()]
        at_work += ["the making of an environment"] if self.environments.held() else []
        if at_work:
            raise Refused(f"there is still at work: {', '.join(at_work)}")
        self.runs, self.watched, self.making = {}, {}, {}
        for run in self.all_runs():
            discard(run.path)
        for folder, names in MADE.items():
            for path in list((self.home / folder).glob("*")):
                if names.match(path.name):
                    discard(path)
            with contextlib.suppress(OSError):  # not there, or not empty
                (self.home / folder).rmdir()

    def do_probe(self, header: Header) -> Header:
        """Versions of packages in a Python, from their metadata, without importing them.

        Only the metadata that is asked for is opened: importlib.metadata takes twice as long to be imported and look.
        """
        code = """
import json, os, re, sys
same = lambda name: re.sub('[-_.]+', '-', name).lower()
found = dict.fromkeys(map(same, sys.argv[1:]))
for folder in sys.path:
    try: entries = os.listdir(folder)
    except OSError: continue
    for entry in entries:
        stem, kind = os.path.splitext(entry)
        name = same(stem.partition('-')[0])
        if kind in ('.dist-info', '.egg-info') and name in found and not found[name]:
            path = os.path.join(folder, entry)
            for file in (os.path.join(path, 'METADATA'), os.path.join(path, 'PKG-INFO'), path):
                try: text = open(file, encoding='utf-8', errors='replace').read()
                except OSError: continue
                version = re.search('^Version: *(.+)', text, re.MULTILINE)
                found[name] = found[name] or version and version[1].strip()
packages = {name: found[same(name)] for name in sys.argv[1:]}
print(json.dumps({'python': sys.version.split()[0], 'packages': packages}))
"""
        try:
            return parse(output_of([header["python"], "-c", code, *header["packages"]], PROBE_S))
        except (OSError, ValueError) as error:
            raise Refused(f"{header['python']} does not run: {error}") from error

    def do_accelerators(self, header: Header) -> Header:
        """What may train here, as nvidia-smi tells it; and, where that is in question, as torch sees it.

        Torch takes seconds to import, so it is not asked on a machine without any sign of one, unless it is `wanted`.
        """
        python = self.interpreter(header)
        answer: Header = {"gpus": []}
        try:
            answer["gpus"] = nvidia_gpus()
        except OSError as error:
            answer["trouble"] = str(error)
        has_sign = bool(answer["gpus"]) or Path("/dev/kfd").exists() or os.uname().sysname == "Darwin"
        if python and (has_sign or header["wanted"]):
            code = (
                "import sys; del sys.path[0]\nimport json,torch\ncount=torch.cuda.device_count()\n"
                "print(json.dumps({'gpus': [torch.cuda.get_device_name(i) for i in range(count)],"
                " 'mps': torch.backends.mps.is_available()}))"
            )
            try:
                answer["torch"] = parse(output_of([python, "-c", code], IMPORT_S))
            except (OSError, ValueError) as error:
                answer["trouble"] = str(error)
        return answer

    def interpreter(self, header: Header) -> str:
        """The Python that a request means: of an environment made here, or one that is named; empty for none."""
        if "environment" in header:
            return str(self.environments.python(header["environment"]))
        return str(header.get("python") or "")

    def do_look(self, header: Header) -> Header:
        """Whether each path is there and may be read; of what is in it nothing is told."""
        paths = [Path(path).expanduser() for path in header["paths"][:MOST_PATHS]]
        return {"found": [{"exists": os.access(path, os.F_OK), "readable": os.access(path, os.R_OK)} for path in paths]}

    def do_trial(self, header: Header) -> Header:
        """Whether modules of a bundle can be imported; `present` is false where it, or a Python, is not here yet."""
        python = self.interpreter(header)
        bundle = self.home / "bundle" / self.blobs.path(header["bundle"]).name
        if not python or not bundle.is_dir():
            return {"present": False}
        paths = [str(bundle / "project"), str(bundle)]
        code = f"import sys; sys.path[0:1] = {paths!r}; from fedctl.node.trial import main; main(sys.argv[1:])"
        try:
            said = parse(self.output_of_trial([python, "-c", code, *header["modules"]]))
        except (OSError, ValueError) as error:
            said = {"failure": str(error)}
        return {"present": True, "failure": said.get("failure")}

    def output_of_trial(self, command: list[str]) -> bytes:
        """What a command prints that imports the user's code."""
        return output_of(command, IMPORT_S)

    @property
    def is_watching(self) -> bool:
        return bool(self.watched or self.making)

    def look(self) -> None:
        """Push what has changed in the watched tasks."""
        now = time.monotonic()
        is_due = now - self.looked_at >= LIVENESS_S
        if is_due:
            self.looked_at = now
        self.look_at_environments()
        queued: dict[str, set[str]] = {}
        for (identity, key), watch in list(self.watched.items()):
            run, push = self.runs[identity], None
            try:
                self.push_progress(run, key, watch)
                if is_due:
                    if identity not in queued:
                        queued[identity] = run.queued()
                    push = self.attend(run, key, watch, is_queued=run.folder(key).name in queued[identity])
                result = run.result(key)
            except BrokenPipeError:
                raise
            except Exception as error:  # whatever is wrong with one task, the others are watched on
                folder = run.path / key.replace("/", "-")
                is_there = folder.is_dir() and not folder.is_symlink()
                result = None if is_there else failed(key, f"the task is gone: {error}", retryable=True)
            if result is not None:
                push = {"push": "result", "result": result}
            if push is not None:
                if push["push"] == "result":
                    push.update(self.tell(identity, key, push["result"], watch.told))
                del self.watched[identity, key]
                self.send({**push, "key": key}, b"")

    def look_at_environments(self) -> None:
        """Push what has changed in the environments that are being made; one whose builder died is made anew, once."""
        for digest, making in list(self.making.items()):
            is_making, line = self.environments.is_making(digest), self.environments.newest_line(digest)
            if line and line != making.line:
                making.line = line
                making.told.add({"line": line})
                self.send({"push": "environment", "key": digest, "line": line}, b"")
            if is_making:
                continue
            end = self.environments.end(digest)
            if end is None and not making.is_revived and making.asker in self.environments.askers(digest):
                making.is_revived = True
                with contextlib.suppress(OSError):
                    self.environments.make(making.needs, making.bundle, self.blobs, making.asker)
                continue
            del self.making[digest]
            end = end or {"error": "the process that made the environment is gone", "detail": line}
            making.told.add(end)
            try:
                about = {"kind": "answer", "op": "environment", "identity": making.asker}
                self.ledger.append(*making.told.entries(about))
            except Refused as refusal:
                end = {"error": str(refusal), "detail": ""}
            self.send({"push": "environment ended", "key": digest, "end": end}, b"")

    def attend(self, run: Run, key: str, watch: Watch, *, is_queued: bool) -> Header | None:
        """See that a task goes on, or fails; returns what there is to push and is not written down."""
        folder, reason = run.folder(key), "the task cannot be begun there"
        try:
            if is_queued and not run.worker_lives():
                if not watch.is_revived:
                    watch.is_revived = True
                    return self.begin(run, key, watch)
                said = tail(run.path / "worker.log", 2000).strip().splitlines()
                reason = f"the worker does not stay: {said[-1][:500] if said else 'it said nothing'}"
            elif is_queued or is_held(folder / "lock"):
                watch.is_missed = False
                return None
            elif not (folder / "pid").exists():
                if run.miss(key) < MOST_MISSES:
                    return self.begin(run, key, watch)
                reason = "what the task needs does not stay whole on the disk there"
            elif watch.is_missed:
                reason = "the process that worked on the task is gone"
            else:
                watch.is_missed = True  # a worker that saw it die knows the reason better and gets a moment to say it
                return None
            run.fail(key, reason, retryable=True)
        except OSError as error:  # a disk that takes nothing: what cannot be written down can still be told
            return {"push": "result", "result": failed(key, f"{reason}: {error}", retryable=True)}
        return None

    def begin(self, run: Run, key: str, watch: Watch) -> Header | None:
        """Begin what nobody has begun, because an agent, a worker or the machine died; or say what is missing here."""
        missing = self.missing(watch.task, watch.worker)
        if missing:
            return {"push": "missing", "missing": missing}
        self.start_worker(run, watch.worker)
        run.accept(key, watch.task, self.owners_words(watch.task))
        return None

    def push_progress(self, run: Run, key: str, watch: Watch) -> None:
        """Push the newest whole line of what has been written since the last look."""
        try:
            with open_own(run.folder(key) / "progress.jsonl", below=2) as file:
                file.seek(watch.offset)
                fresh = file.read(CHUNK)
        except FileNotFoundError:
            return
        end = fresh.rfind(b"\n") + 1
        watch.offset += end or (CHUNK if len(fresh) == CHUNK else 0)
        if end:
            try:
                progress = parse(fresh[:end].splitlines()[-1])
            except ValueError:
                return
            progress = self.outgoing_progress(progress)
            watch.told.add(progress)
            self.send({"push": "progress", "key": key, "progress": progress}, b"")


def unpack(source: Path, folder: Path) -> None:
    """Write a tar's files below `folder`; anything but plain files and folders inside is refused."""
    import shutil
    import tarfile

    with tarfile.open(source) as archive:
        for member in archive:
            parts = member.name.split("/")
            content = archive.extractfile(member) if member.isreg() and not member.issparse() else None
            if member.name.startswith("/") or ".." in parts or not (content or member.isdir()):
                raise Refused(f"the bundle holds {member.name!r}")
            target = folder.joinpath(*parts)
            (target.parent if content else target).mkdir(parents=True, exist_ok=True)
            if content:
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file)
                    file.flush()
                    os.fsync(file.fileno())


class Line:
    """Reading of a pipe that copies long bodies once, and shows what it read ahead, so that select() can be trusted."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.ahead = bytearray(AHEAD)
        self.held = memoryview(b"")
        self.room = bytearray()

    def read(self, size: int) -> Any:
        """`size` bytes, or fewer at the end; they stand until the next call."""
        if size <= len(self.held):
            taken, self.held = self.held[:size], self.held[size:]
            return taken
        if size > len(self.room):
            self.room = bytearray(size)
        view, have = memoryview(self.room)[:size], len(self.held)
        view[:have] = self.held
        while have < size:
            came = os.readv(self.descriptor, [view[have:], self.ahead])
            self.held = memoryview(self.ahead)[: max(0, have + came - size)]
            have = min(size, have + came)
            if not came:
                break
        return view[:have]


def serve(agent_for: Callable[[Callable[[Header, bytes | Slice], None]], Agent]) -> None:
    """Answer frames from stdin until it ends, by an agent that sends what it has to say by the function it is given."""
    source, sink = sys.stdin.fileno(), os.dup(sys.stdout.fileno())
    with Path(os.devnull).open("wb") as null:
        os.dup2(null.fileno(), sys.stdout.fileno())
    for pipe in (source, sink):
        with contextlib.suppress(OSError):  # not a pipe, not Linux, or past what a user may have
            fcntl.fcntl(pipe, SET_PIPE_SIZE, PIPE)

    def send(header: Header, body: bytes | Slice = b"") -> None:
        head = encode_head(header, len(body))
        if isinstance(body, Slice):
            write_all(sink, head)
            body.write_to(sink)
        else:
            write_all(sink, head, body)

    line = Line(source)
    agent = agent_for(send)
    write_all(sink, GREETING)
    try:
        converse(agent, line)
    finally:
        agent.end()


def converse(agent: Agent, line: Line) -> None:
    """Answer what comes and push what there is to see, until the line ends."""
    next_look = 0.0
    while True:
        rest_s = max(0.0, next_look - time.monotonic()) if agent.is_watching else None
        if line.held or select.select([line.descriptor], [], [], rest_s)[0]:
            try:
                frame = read_frame(line.read)
            except CutOff as cut:
                if cut.header.get("op") == "put":  # every byte that came need not come again
                    agent.answer(cut.header, cut.body)
                return
            if frame is None:
                return
            agent.answer(*frame)
        began = time.monotonic()
        if agent.is_watching and began >= next_look:
            agent.look()
            ended = time.monotonic()
            # Many tasks make a look dear; resting five times as long bounds what watching takes from the training.
            next_look = ended + max(TICK_S, 5 * (ended - began))


def main() -> None:
    """Serve the one line that this process was started for."""
    os.umask(0o077)  # what is kept here is nobody else's, whatever the login's own umask
    home = Path(os.environ.get("FEDCTL_HOME") or "~/.fedctl").expanduser()
    with contextlib.suppress(BrokenPipeError):  # the coordinator has gone; what it started goes on
        serve(lambda send: Agent(home, send))


if __name__ == "__main__":
    main()
