"""The agent: what the coordinator talks to on a node, over the stdin and stdout of one command.

One standard-library file for Python 3.8 or newer: it is sent over stdin on first contact, kept under the hash of its
own bytes, and runs before any environment exists. It keeps blobs by their SHA-256, starts a worker that outlives it,
puts tasks into the worker's folder, and pushes what it sees there (progress, results, losses) down the line.

A frame is a JSON header and a raw body, each behind its length. Requests carry `id` and `op`; the answer carries the
same id as `re`. Pushes carry `push`. The agent ends when its stdin ends; whatever it started goes on.

A task waits in `queue/`; whoever works on it holds its `lock`, has put its process group into `pid` and has taken it
out of the queue, in that order; `result.json` ends it. So at every instant a task is queued, held, done, or lost.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any, Callable, Dict

Header = Dict[str, Any]

PROTOCOL = 1
LENGTHS = struct.Struct(">II")
LONGEST_HEADER = 16 * 2**20
LONGEST_BODY = 8 * 2**20
CHUNK = 2**20
PIPE = 2**16
TICK_S = 0.01
LIVENESS_S = 1.0
END_S = 10.0

DIGEST = re.compile(r"[0-9a-f]{64}\Z")
FOLDER = re.compile(r"r[0-9]{4,9}-[A-Za-z0-9][A-Za-z0-9._-]{0,63}-[aesci][0-9]{1,4}\Z")
RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
READABLE = ("update.safetensors", "train.log")


class Refused(Exception):
    """A request that cannot be met; the text goes back to the coordinator."""


def encode_frame(header: Header, body: bytes = b"") -> bytes:
    """The bytes of one frame."""
    head = json.dumps(header, separators=(",", ":")).encode()
    return b"".join((LENGTHS.pack(len(head), len(body)), head, body))


def read_frame(read: Callable[[int], bytes]) -> tuple[Header, bytes] | None:
    """One (header, body) from `read(n)`, which returns exactly n bytes or fewer at the end; None at the end.

    Raises ValueError for a frame that is too long, cut off or not JSON.
    """
    lengths = read(LENGTHS.size)
    if not lengths:
        return None
    if len(lengths) < LENGTHS.size:
        raise ValueError("a frame was cut off")
    head_size, body_size = LENGTHS.unpack(lengths)
    if head_size > LONGEST_HEADER or body_size > LONGEST_BODY:
        raise ValueError(f"a frame claims {head_size} + {body_size} bytes")
    head, body = read(head_size), read(body_size) if body_size else b""
    if len(head) < head_size or len(body) < body_size:
        raise ValueError("a frame was cut off")
    return parse(head), body


def parse(text: bytes) -> Header:
    """A JSON object; raises ValueError for anything else."""
    try:
        value = json.loads(text)
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
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    temporary.rename(path)


def is_held(path: Path) -> bool:
    """True while some process holds the flock of that file."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    return False


def kill_group(pid: int) -> None:
    """Kill the process group that this process leads."""
    if pid > 1:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)


def kill_holder(lock: Path, pid: Path) -> None:
    """Kill the group whose leader wrote `pid`, if it still holds the lock: by now the number may be a stranger's."""
    number = tail(pid, 20)
    if number.isdigit() and is_held(lock):
        kill_group(int(number))


def tail(path: Path, size: int) -> str:
    """The end of a text file, at most `size` bytes of it; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size).decode("utf-8", "replace")
    except OSError:
        return ""


def cpus() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Blobs:
    """Bytes under their SHA-256; a partial one is kept as `.part` and goes on where it broke."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        if not isinstance(digest, str) or not DIGEST.match(digest):
            raise Refused(f"not a digest: {digest!r}")
        return self.folder / digest

    def part(self, digest: str) -> Path:
        return self.path(digest).with_suffix(".part")

    def stat(self, digest: str) -> Header:
        path, part = self.path(digest), self.part(digest)
        if path.exists():
            return {"whole": True, "size": path.stat().st_size}
        return {"whole": False, "size": part.stat().st_size if part.exists() else 0}

    def put(self, digest: str, size: int, offset: int, body: bytes) -> Header:
        """Write at `offset`; when `size` is reached, verify and rename."""
        path, part = self.path(digest), self.part(digest)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.folder.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another agent may be sent the same blob at the same time
            known = self.stat(digest)
            if known["whole"]:
                return known
            if offset > known["size"]:
                raise Refused(f"offset {offset} is past the {known['size']} bytes that are here")
            part.touch()
            with part.open("r+b") as file:
                file.seek(offset)
                file.write(body)
                have = file.seek(0, os.SEEK_END)
                if have < size:
                    return {"whole": False, "size": have}
                file.flush()
                os.fsync(file.fileno())
            if have != size or self.hash(part) != digest:
                part.unlink()
                raise Refused(f"the bytes are not those of {digest[:12]}")
            part.rename(path)
        return {"whole": True, "size": size}

    def hash(self, path: Path) -> str:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for chunk in iter(lambda: file.read(CHUNK), b""):
                digest.update(chunk)
        return digest.hexdigest()

    def remove(self, digest: str) -> None:
        for path in (self.path(digest), self.part(digest)):
            if path.exists():
                path.unlink()


class Run:
    """One run's folder: its tasks, its queue and the worker that serves them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.queue = path / "queue"
        self.children = path / "children"
        self.worker: subprocess.Popen[bytes] | None = None

    @classmethod
    def claim(cls, home: Path, name: str, identity: str) -> Run:
        """The run's own folder on this machine: two runs of one name get two, and so do two machines with one home."""
        owner = f"{identity} {platform.node()}"
        for candidate in (name, f"{name}.{hashlib.sha256(owner.encode()).hexdigest()[:8]}"):
            if not RUN.match(candidate) or ".." in candidate:
                raise Refused(f"not a run name: {candidate!r}")
            run = cls(home / "runs" / candidate)
            if not run.path.exists():
                temporary = beside(run.path)
                for part in ("queue", "children"):
                    (temporary / part).mkdir(parents=True)
                (temporary / "id").write_text(owner)
                try:
                    temporary.rename(run.path)
                except OSError:  # another agent was faster
                    shutil.rmtree(temporary)
            if tail(run.path / "id", 1000) == owner:
                return run
        raise Refused(f"another run is called {name} here")

    def folder(self, key: str) -> Path:
        name = key.replace("/", "-")
        if not FOLDER.match(name) or ".." in name or key_of(name) != key:
            raise Refused(f"not a task key: {key!r}")
        return self.path / name

    def folders(self) -> list[Path]:
        """The folders of all tasks."""
        return sorted(path for path in self.path.iterdir() if FOLDER.match(path.name))

    def start_worker(self, home: Path, spec: Header) -> bool:
        """Start a detached worker unless one lives; returns whether one was started."""
        if not DIGEST.match(spec["bundle"]):
            raise Refused(f"not a digest: {spec['bundle']!r}")
        bundle = home / "bundle" / spec["bundle"]
        paths = [str(bundle / "project"), str(bundle)]
        with (self.path / "worker.lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if self.worker is not None:
                self.worker.wait()  # it has let go of the lock, so it is at its end
            # The worker inherits the lock: it is held, and its number known, from the worker's first moment on.
            code = f"from fedctl.node.worker import main; main({str(self.path)!r}, {lock.fileno()})"
            remove(self.path / "worker.pid")
            write_whole(self.path / "worker.json", json.dumps(spec).encode(), durable=False)
            with (self.path / "worker.log").open("ab") as log:
                self.worker = subprocess.Popen(
                    [spec["python"], "-c", f"import sys; sys.path[0:1] = {paths!r}; {code}"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=[lock.fileno()],
                    cwd=spec["cwd"] if Path(spec["cwd"]).is_dir() else Path.home(),
                    env=dict(os.environ, PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1"),
                )
            write_whole(self.path / "worker.pid", str(self.worker.pid).encode(), durable=False)
        return True

    def worker_lives(self) -> bool:
        if self.worker is not None:
            self.worker.poll()  # it is this process that must reap it
        return is_held(self.path / "worker.lock")

    def accept(self, key: str, task: Header) -> bool:
        """Put a task into the worker's queue, at most once a key; returns whether it is new."""
        folder = self.folder(key)
        if folder.is_dir():
            return False
        temporary = beside(folder)
        temporary.mkdir()
        write_whole(temporary / "task.json", json.dumps(task).encode(), durable=False)
        try:
            temporary.rename(folder)
        except OSError:  # another agent was faster
            shutil.rmtree(temporary)
            return False
        self.enqueue(folder.name)
        return True

    def enqueue(self, name: str) -> None:
        (self.queue / f"{time.time_ns():020d}-{name}").touch()
        self.wake()

    def wake(self) -> None:
        """Nudge the worker; it looks by itself now and then, so a missed nudge costs only time."""
        with contextlib.suppress(OSError):
            fifo = os.open(self.path / "wake", os.O_WRONLY | os.O_NONBLOCK)
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
            with (self.folder(key) / "result.json").open("rb") as file:
                return parse(file.read(LONGEST_HEADER // 2))
        except OSError:
            return None
        except ValueError:
            return {}

    def fail(self, key: str, reason: str, *, retryable: bool) -> bool:
        """Give a task that no process works on its result: a failure. False when it has one or is held."""
        folder = self.folder(key)
        with (folder / "lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            if (folder / "result.json").exists():
                return False
            self.unqueue(key)
            if (folder / "cancelled").exists():
                reason, retryable = "cancelled", False
            detail = tail(folder / "train.log", 4000) or tail(self.path / "worker.log", 4000)
            failure = failed(key, reason, detail, retryable=retryable)
            write_whole(folder / "result.json", json.dumps(failure).encode())
        return True

    def cancel(self, key: str) -> None:
        """Stop a task, whether it waits or runs, and give it a result that says so."""
        folder = self.folder(key)
        if not folder.is_dir():
            return
        (folder / "cancelled").touch()
        self.unqueue(key)
        deadline = time.monotonic() + END_S
        while not self.fail(key, "cancelled", retryable=False) and self.result(key) is None:
            if time.monotonic() > deadline:
                raise Refused(f"the process of {key} does not end")
            kill_holder(folder / "lock", folder / "pid")
            time.sleep(TICK_S)

    def stop(self) -> None:
        """End the worker and everything that it forked; what waits is begun only if it is asked for again."""
        for entry in self.queue.iterdir():
            remove(entry)
        deadline = time.monotonic() + END_S
        while True:
            held = [child for child in self.children.iterdir() if is_held(child)]
            if not held and not self.worker_lives():
                break
            if time.monotonic() > deadline:
                raise Refused("a process of the run does not end")
            kill_holder(self.path / "worker.lock", self.path / "worker.pid")
            for child in held:
                kill_holder(child, child)
            time.sleep(TICK_S)
        for folder in self.folders():
            if not (folder / "result.json").exists():
                remove(folder / "pid")  # it was stopped on purpose, so it may be begun again

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
            digest = parse((self.path / "worker.json").read_bytes())["bundle"]
        except (OSError, ValueError, KeyError):
            return None
        return digest if DIGEST.match(digest) else None


def key_of(folder: str) -> str:
    """The key of a task by the name of its folder: `r0003-alice-a1` is `r0003/alice/a1`."""
    head, _, rest = folder.partition("-")
    return "/".join((head, *rest.rsplit("-", 1)))


def failed(key: str, reason: str, detail: str = "", *, retryable: bool) -> Header:
    """The result of a task that came to nothing."""
    nothing = {"examples": 0, "metrics": {}, "scores": {}, "update": None, "seconds": 0.0, "accelerator": ""}
    return {"key": key, **nothing, "error": reason, "detail": detail, "retryable": retryable}


def remove(path: Path) -> None:
    """Remove a file that another process may be removing too."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


class Watch:
    """What the agent remembers of a task that it watches."""

    def __init__(self, worker: Header) -> None:
        self.worker = worker
        self.offset = 0
        self.is_revived = False
        self.is_missed = False


class Agent:
    """Answers requests and watches the tasks that were started or adopted over this line."""

    def __init__(self, home: Path, send: Callable[[Header, bytes], None]) -> None:
        self.home = home
        self.send = send
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.chmod(0o700)
        self.blobs = Blobs(home / "blobs")
        self.runs: dict[str, Run] = {}
        self.watched: dict[tuple[str, str], Watch] = {}
        self.looked_at = 0.0

    def answer(self, header: Header, body: bytes) -> None:
        """Answer one request; a refusal is an answer too. An operation finds and leaves a body under "body"."""
        operation = getattr(self, f"do_{header.get('op')}", None)
        try:
            if operation is None:
                answer: Header = {"error": f"unknown operation: {header.get('op')!r}"}
            else:
                answer = operation({**header, "body": body}) or {}
        except Refused as refusal:
            answer = {"error": str(refusal)}
        except Exception as error:  # whatever one request asks for, the tasks of the others are watched on
            answer = {"error": f"{type(error).__name__}: {error}"}
        data = answer.pop("body", b"")
        self.send({"re": header.get("id"), **answer}, data)

    def run(self, header: Header) -> Run:
        identity = header["identity"]
        run = self.runs.get(identity)
        if run is None or not run.path.is_dir():
            run = self.runs[identity] = Run.claim(self.home, header["run"], identity)
        return run

    def others(self, run: Run) -> list[Run]:
        """The other runs on this machine."""
        paths = (self.home / "runs").iterdir()
        return [Run(path) for path in paths if path != run.path and RUN.match(path.name) and path.is_dir()]

    def do_hello(self, _: Header) -> Header:
        """What the coordinator should know of this machine; sizes in bytes, `time` in seconds since 1970."""
        return {
            "protocol": PROTOCOL,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "hostname": platform.node(),
            "cpus": cpus(),
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "disk_free": shutil.disk_usage(self.home).free,
            "time": time.time(),
            "home": str(self.home),
        }

    def do_stat(self, header: Header) -> Header:
        return {"blobs": {digest: self.blobs.stat(digest) for digest in header["digests"]}}

    def do_put(self, header: Header) -> Header:
        return self.blobs.put(header["digest"], header["size"], header["offset"], header["body"])

    def do_unpack(self, header: Header) -> None:
        """Unpack a bundle that is here as a blob."""
        source, target = self.blobs.path(header["digest"]), self.home / "bundle" / header["digest"]
        if target.is_dir():
            return
        temporary = beside(target)
        temporary.mkdir(parents=True)
        try:
            unpack(source, temporary)
            temporary.rename(target)
        except OSError:
            if not target.is_dir():  # else another agent was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def do_worker(self, header: Header) -> Header:
        return {"started": self.run(header).start_worker(self.home, header["worker"])}

    def do_start(self, header: Header) -> Header:
        """Start a task or adopt it; from now on its progress and its end are pushed."""
        run, key, task = self.run(header), header["key"], header["task"]
        result = run.result(key)
        if result is not None:
            return {"state": "done", "result": result}
        missing = [blob["digest"] for blob in task["models"].values() if not self.blobs.stat(blob["digest"])["whole"]]
        bundle = self.home / "bundle" / self.blobs.path(header["worker"]["bundle"]).name
        if not bundle.is_dir():
            missing.append(bundle.name)
        if missing:
            return {"missing": missing}
        is_new = run.accept(key, task)
        run.start_worker(self.home, header["worker"])
        self.watched[header["identity"], key] = Watch(header["worker"])
        return {"state": "started" if is_new else "adopted"}

    def do_read(self, header: Header) -> Header:
        """A piece of a task's file; the name is one of a few, never a path."""
        if header["name"] not in READABLE:
            raise Refused(f"not a readable file: {header['name']!r}")
        with (self.run(header).folder(header["key"]) / header["name"]).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(min(header["offset"], size))
            return {"size": size, "body": file.read(max(0, min(header["limit"], LONGEST_BODY)))}

    def do_release(self, header: Header) -> None:
        """The coordinator holds these tasks' updates now, and needs these models no more."""
        run = self.run(header)
        for key in header["keys"]:
            remove(run.folder(key) / "update.safetensors")
        if header["digests"]:
            runs = [run, *self.others(run)]
            needed = {digest for one in runs for digest in one.digests(unfinished=True)}
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
        self.run(header).stop()
        self.watched = {place: watch for place, watch in self.watched.items() if place[0] != header["identity"]}

    def do_remove(self, header: Header) -> None:
        """Stop a run and remove its folder, and the blobs and the bundle that no other run names."""
        self.do_stop(header)
        run = self.runs.pop(header["identity"])
        digests = run.digests() | {digest for digest in header["digests"] if DIGEST.match(digest)}
        bundle = run.bundle()
        shutil.rmtree(run.path)
        for other in self.others(run):
            digests -= other.digests()
            if other.bundle() == bundle:
                bundle = None
        for digest in digests:
            self.blobs.remove(digest)
        if bundle:
            shutil.rmtree(self.home / "bundle" / bundle, ignore_errors=True)
            self.blobs.remove(bundle)

    def do_probe(self, header: Header) -> Header:
        """Versions of packages in a Python, from their metadata, without importing them."""
        code = (
            "import json,sys\nfrom importlib.metadata import version, PackageNotFoundError\nfound={}\n"
            "for name in sys.argv[1:]:\n"
            " try: found[name]=version(name)\n"
            " except PackageNotFoundError: found[name]=None\n"
            "print(json.dumps({'python': sys.version.split()[0], 'packages': found}))"
        )
        command = [header["python"], "-c", code, *header["packages"]]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", None) or b"").decode("utf-8", "replace")[-500:]
            raise Refused(f"{header['python']} does not run: {said or error}") from error
        return parse(done.stdout)

    def look(self) -> None:
        """Push what has changed in the watched tasks."""
        now = time.monotonic()
        is_due = now - self.looked_at >= LIVENESS_S
        if is_due:
            self.looked_at = now
        queued: dict[str, set[str]] = {}
        for (identity, key), watch in list(self.watched.items()):
            run = self.runs[identity]
            try:
                self.push_progress(run, key, watch)
                if is_due:
                    queued[identity] = queued.get(identity) or run.queued()
                    self.attend(run, key, watch, is_queued=run.folder(key).name in queued[identity])
                result = run.result(key)
            except BrokenPipeError:
                raise
            except OSError as error:  # the disk is full, or the folder was removed; only the one may pass
                result = None if run.folder(key).is_dir() else failed(key, f"the task is gone: {error}", retryable=True)
            if result is not None:
                del self.watched[identity, key]
                self.send({"push": "result", "key": key, "result": result}, b"")

    def attend(self, run: Run, key: str, watch: Watch, *, is_queued: bool) -> None:
        """Start a worker for a waiting task, once; fail one that was begun and that nobody holds any more."""
        folder = run.folder(key)
        if is_queued and not run.worker_lives():
            if watch.is_revived:
                said = tail(run.path / "worker.log", 2000).strip().splitlines()
                run.fail(
                    key, f"the worker does not stay: {said[-1][:500] if said else 'it said nothing'}", retryable=True
                )
            else:
                watch.is_revived = True
                run.start_worker(self.home, watch.worker)
        elif is_queued or is_held(folder / "lock"):
            watch.is_missed = False
        elif not (folder / "pid").exists():
            run.enqueue(folder.name)  # an agent died between making the folder and queueing it
        elif watch.is_missed:
            run.fail(key, "the process that worked on the task is gone", retryable=True)
        else:
            watch.is_missed = True  # a worker that saw it die knows the reason better and gets a moment to say it

    def push_progress(self, run: Run, key: str, watch: Watch) -> None:
        """Push the newest whole line of what has been written since the last look."""
        try:
            with (run.folder(key) / "progress.jsonl").open("rb") as file:
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
            self.send({"push": "progress", "key": key, "progress": progress}, b"")


def unpack(source: Path, folder: Path) -> None:
    """Write a tar's files below `folder`; anything but plain files and folders inside is refused."""
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


class Line:
    """Buffered reading of a pipe that shows what it holds, so that select() can be trusted for the rest."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.buffer = bytearray()

    def read(self, size: int) -> bytes:
        while len(self.buffer) < size:
            fresh = os.read(self.descriptor, PIPE)
            if not fresh:
                break
            self.buffer += fresh
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data


def serve(home: Path) -> None:
    """Answer frames from stdin until it ends."""
    source, sink = sys.stdin.fileno(), os.dup(sys.stdout.fileno())
    with Path(os.devnull).open("wb") as null:
        os.dup2(null.fileno(), sys.stdout.fileno())

    def send(header: Header, body: bytes = b"") -> None:
        data = memoryview(encode_frame(header, body))
        while data:
            data = data[os.write(sink, data) :]

    line = Line(source)
    agent = Agent(home, send)
    next_look = 0.0
    while True:
        rest_s = max(0.0, next_look - time.monotonic()) if agent.watched else None
        if line.buffer or select.select([source], [], [], rest_s)[0]:
            frame = read_frame(line.read)
            if frame is None:
                return
            agent.answer(*frame)
        began = time.monotonic()
        if agent.watched and began >= next_look:
            agent.look()
            ended = time.monotonic()
            # Many tasks make a look dear; resting five times as long bounds what watching takes from the training.
            next_look = ended + max(TICK_S, 5 * (ended - began))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the coordinator has gone; what it started goes on
        serve(Path(os.environ.get("FEDCTL_HOME") or "~/.fedctl").expanduser())
