"""The agent: what the coordinator talks to on a node, over the stdin and stdout of one command.

One standard-library file for Python 3.8 or newer: it is sent over stdin on first contact, kept under the hash of its
own bytes, and runs before any environment exists. It keeps blobs by their SHA-256, starts a worker that outlives it,
puts tasks into the worker's folder, and pushes what it sees there (progress, results, losses) down the line.

A frame is a JSON header and a raw body, each behind its length. Requests carry `id` and `op`; the answer carries the
same id as `re`. Pushes carry `push`. The agent ends when its stdin ends; whatever it started goes on.
"""

from __future__ import annotations

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

PROTOCOL = 1
LENGTHS = struct.Struct(">II")
LONGEST_HEADER = 16 * 2**20
LONGEST_BODY = 8 * 2**20
CHUNK = 2**20
TICK_S = 0.01
LIVENESS_S = 1.0

DIGEST = re.compile(r"[0-9a-f]{64}\Z")
FOLDER = re.compile(r"r\d{4,}-[A-Za-z0-9][A-Za-z0-9._-]{0,63}-[aesci]\d{1,4}\Z")
RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
READABLE = ("update.safetensors", "train.log")


class Refused(Exception):
    """A request that cannot be met; the text goes back to the coordinator."""


def encode_frame(header, body=b""):
    """The bytes of one frame."""
    head = json.dumps(header, separators=(",", ":")).encode()
    return b"".join((LENGTHS.pack(len(head), len(body)), head, body))


def read_frame(read):
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
        raise ValueError("a frame claims %d + %d bytes" % (head_size, body_size))
    head, body = read(head_size), read(body_size) if body_size else b""
    if len(head) < head_size or len(body) < body_size:
        raise ValueError("a frame was cut off")
    header = json.loads(head)
    if not isinstance(header, dict):
        raise ValueError("a frame's header is no object")
    return header, body


def write_whole(path, data):
    """Write a file under a temporary name and rename it into place."""
    temporary = "%s.tmp-%d" % (path, os.getpid())
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


def is_held(path):
    """True while some process holds the flock of that file."""
    try:
        file = open(path, "rb")
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
        return False


def tail(path, size):
    """The end of a text file, at most `size` bytes of it."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size).decode("utf-8", "replace")
    except OSError:
        return ""


def cpus():
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def facts(home):
    """What the coordinator should know of this machine; sizes in bytes, `time` in seconds since 1970."""
    return {
        "protocol": PROTOCOL,
        "python": platform.python_version(),
        "system": "%s %s %s" % (platform.system(), platform.release(), platform.machine()),
        "hostname": platform.node(),
        "cpus": cpus(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "disk_free": shutil.disk_usage(home).free,
        "time": time.time(),
        "home": home,
    }


class Blobs:
    """Bytes under their SHA-256; a partial one is kept as `.part` and goes on where it broke."""

    def __init__(self, folder):
        self.folder = folder
        os.makedirs(folder, exist_ok=True)

    def path(self, digest):
        if not isinstance(digest, str) or not DIGEST.match(digest):
            raise Refused("not a digest: %r" % (digest,))
        return os.path.join(self.folder, digest)

    def stat(self, digest):
        path = self.path(digest)
        if os.path.exists(path):
            return {"whole": True, "size": os.path.getsize(path)}
        part = path + ".part"
        return {"whole": False, "size": os.path.getsize(part) if os.path.exists(part) else 0}

    def put(self, digest, size, offset, body):
        """Append at `offset`; when `size` is reached, verify and rename."""
        path = self.path(digest)
        part = path + ".part"
        if os.path.exists(path):
            return {"whole": True, "size": os.path.getsize(path)}
        have = os.path.getsize(part) if os.path.exists(part) else 0
        if offset > have:
            raise Refused("offset %d is past the %d bytes that are here" % (offset, have))
        with open(part, "r+b" if have else "wb") as file:
            file.seek(offset)
            file.write(body)
            file.truncate()
            have = file.tell()
            if have < size:
                return {"whole": False, "size": have}
            file.flush()
            os.fsync(file.fileno())
        if have != size or self.hash(part) != digest:
            os.remove(part)
            raise Refused("the bytes are not those of %s" % digest[:12])
        os.rename(part, path)
        return {"whole": True, "size": size}

    def hash(self, path):
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            for chunk in iter(lambda: file.read(CHUNK), b""):
                digest.update(chunk)
        return digest.hexdigest()

    def remove(self, digest):
        for path in (self.path(digest), self.path(digest) + ".part"):
            if os.path.exists(path):
                os.remove(path)


class Run:
    """One run's folder: its tasks, its queue and the worker that serves them."""

    def __init__(self, path):
        self.path = path
        self.worker = None

    @classmethod
    def claim(cls, home, name, identity):
        """The run's own folder; two runs of one name on one machine get two."""
        for candidate in (name, "%s.%s" % (name, identity[:8])):
            if not RUN.match(candidate) or ".." in candidate:
                raise Refused("not a run name: %r" % (candidate,))
            path = os.path.join(home, "runs", candidate)
            os.makedirs(os.path.join(path, "queue"), exist_ok=True)
            owner = os.path.join(path, "id")
            try:
                write = os.open(owner, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                with open(owner) as file:
                    if file.read() == identity:
                        return cls(path)
            else:
                with os.fdopen(write, "w") as file:
                    file.write(identity)
                return cls(path)
        raise Refused("two other runs are called %s here" % name)

    def folder(self, key):
        name = key.replace("/", "-")
        if not FOLDER.match(name) or ".." in name:
            raise Refused("not a task key: %r" % (key,))
        return os.path.join(self.path, name)

    def start_worker(self, home, spec):
        """Start a detached worker unless one lives; returns whether one was started."""
        if self.worker_lives():
            return False
        write_whole(os.path.join(self.path, "worker.json"), json.dumps(spec).encode())
        bundle = os.path.join(home, "bundle", spec["bundle"])
        code = "import sys; sys.path[0:1] = %r; from fedctl.node.worker import main; main(%r)" % (
            [os.path.join(bundle, "project"), bundle],
            self.path,
        )
        with open(os.path.join(self.path, "worker.log"), "ab") as log:
            self.worker = subprocess.Popen(
                [spec["python"], "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=spec["cwd"] if os.path.isdir(spec["cwd"]) else os.path.expanduser("~"),
                env=dict(os.environ, PYTHONUNBUFFERED="1", PYTHONDONTWRITEBYTECODE="1"),
            )
        return True

    def worker_lives(self):
        if self.worker is not None and self.worker.poll() is None:
            return True
        return is_held(os.path.join(self.path, "worker.lock"))

    def accept(self, key, task):
        """Put a task into the worker's queue, at most once a key."""
        folder = self.folder(key)
        if os.path.isdir(folder):
            return
        temporary = "%s.tmp-%d" % (folder, os.getpid())
        shutil.rmtree(temporary, ignore_errors=True)
        os.mkdir(temporary)
        write_whole(os.path.join(temporary, "task.json"), json.dumps(task).encode())
        try:
            os.rename(temporary, folder)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            return
        with open(os.path.join(self.path, "queue", "%020d-%s" % (time.time_ns(), os.path.basename(folder))), "wb"):
            pass
        self.wake()

    def wake(self):
        """Nudge the worker; it looks by itself now and then, so a missed nudge costs only time."""
        try:
            fifo = os.open(os.path.join(self.path, "wake"), os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return
        try:
            os.write(fifo, b"!")
        except OSError:
            pass
        finally:
            os.close(fifo)

    def result(self, key):
        """The finished task's result, or None."""
        try:
            with open(os.path.join(self.folder(key), "result.json"), "rb") as file:
                return json.loads(file.read())
        except (OSError, ValueError):
            return None

    def fail(self, key, reason, retryable):
        """Give a task that no process works on its result: a failure. False when it has one or is held."""
        folder = self.folder(key)
        with open(os.path.join(folder, "lock"), "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            if os.path.exists(os.path.join(folder, "result.json")):
                return False
            self.unqueue(key)
            failure = {
                "key": key,
                "examples": 0,
                "metrics": {},
                "scores": {},
                "update": None,
                "seconds": 0.0,
                "accelerator": "",
                "error": reason,
                "detail": tail(os.path.join(folder, "train.log"), 4000) or tail(self.path + "/worker.log", 4000),
                "retryable": retryable,
            }
            write_whole(os.path.join(folder, "result.json"), json.dumps(failure).encode())
        return True

    def queued(self):
        """The folders of the tasks that no worker has taken yet."""
        return {entry.split("-", 1)[1] for entry in os.listdir(os.path.join(self.path, "queue"))}

    def unqueue(self, key):
        name = os.path.basename(self.folder(key))
        for entry in os.listdir(os.path.join(self.path, "queue")):
            if entry.split("-", 1)[1] == name:
                os.remove(os.path.join(self.path, "queue", entry))

    def cancel(self, key):
        """Stop a task, whether it waits or runs, and give it a result that says so."""
        folder = self.folder(key)
        if not os.path.isdir(folder):
            return
        self.unqueue(key)
        deadline = time.monotonic() + 5
        while not self.fail(key, "cancelled", False) and self.result(key) is None and time.monotonic() < deadline:
            kill_group(read_number(os.path.join(folder, "pid")))
            time.sleep(0.02)

    def stop(self):
        """End the worker and everything that it forked."""
        for name in os.listdir(self.path):
            if FOLDER.match(name) and is_held(os.path.join(self.path, name, "lock")):
                kill_group(read_number(os.path.join(self.path, name, "pid")))
        kill_group(read_number(os.path.join(self.path, "worker.pid")))
        if self.worker is not None:
            kill_group(self.worker.pid)
            self.worker.wait()

    def digests(self):
        """The blobs that this run's tasks name."""
        found = set()
        for name in os.listdir(self.path):
            if FOLDER.match(name):
                try:
                    with open(os.path.join(self.path, name, "task.json")) as file:
                        found.update(blob["digest"] for blob in json.load(file)["models"].values())
                except (OSError, ValueError, KeyError, TypeError):
                    continue
        return found

    def bundle(self):
        try:
            with open(os.path.join(self.path, "worker.json")) as file:
                return json.load(file)["bundle"]
        except (OSError, ValueError, KeyError):
            return None


def key_of(folder):
    """The key of a task by the name of its folder: `r0003-alice-a1` is `r0003/alice/a1`."""
    head, rest = folder.split("-", 1)
    return "/".join((head, *rest.rsplit("-", 1)))


def read_number(path):
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def kill_group(pid):
    """Kill the process group that this pid leads."""
    if pid > 1:
        try:
            os.killpg(pid, signal.SIGKILL)
        except OSError:
            pass


class Watch:
    """What the agent remembers of a task that it watches."""

    def __init__(self, worker):
        self.worker = worker
        self.offset = 0
        self.revived = False


class Agent:
    """Answers requests and watches the tasks that were started or adopted over this line."""

    def __init__(self, home, send):
        self.home = home
        self.send = send
        os.makedirs(home, mode=0o700, exist_ok=True)
        os.chmod(home, 0o700)
        self.blobs = Blobs(os.path.join(home, "blobs"))
        self.runs = {}
        self.watched = {}
        self.looked_at = 0.0

    def answer(self, header, body):
        """Answer one request; a refusal is an answer too."""
        operation = getattr(self, "do_%s" % header.get("op"), None)
        answer = {"re": header.get("id")}
        data = b""
        try:
            if operation is None:
                raise Refused("unknown operation: %r" % (header.get("op"),))
            found = operation(header, body)
            if isinstance(found, tuple):
                found, data = found
            answer.update(found or {})
        except Refused as refusal:
            answer["error"] = str(refusal)
        except (OSError, KeyError, TypeError, ValueError, AttributeError, tarfile.TarError) as error:
            answer["error"] = "%s: %s" % (type(error).__name__, error)
        self.send(answer, data)

    def run(self, header):
        identity = header["identity"]
        if identity not in self.runs:
            self.runs[identity] = Run.claim(self.home, header["run"], identity)
        return self.runs[identity]

    def do_hello(self, header, body):
        return facts(self.home)

    def do_stat(self, header, body):
        return {"blobs": {digest: self.blobs.stat(digest) for digest in header["digests"]}}

    def do_put(self, header, body):
        return self.blobs.put(header["digest"], header["size"], header["offset"], body)

    def do_unpack(self, header, body):
        """Unpack a bundle that is here as a blob; files and folders only, all inside."""
        digest = header["digest"]
        source, target = self.blobs.path(digest), os.path.join(self.home, "bundle", digest)
        if os.path.isdir(target):
            return {}
        temporary = "%s.tmp-%d" % (target, os.getpid())
        shutil.rmtree(temporary, ignore_errors=True)
        os.makedirs(temporary)
        with tarfile.open(source) as archive:
            for member in archive:
                if (
                    not (member.isfile() or member.isdir())
                    or member.name.startswith("/")
                    or ".." in member.name.split("/")
                ):
                    raise Refused("the bundle holds %r" % (member.name,))
                archive.extract(member, temporary, set_attrs=False)
        try:
            os.rename(temporary, target)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
        return {}

    def do_worker(self, header, body):
        return {"started": self.run(header).start_worker(self.home, header["worker"])}

    def do_start(self, header, body):
        """Start a task or adopt it; from now on its progress and its end are pushed."""
        run, key, task = self.run(header), header["key"], header["task"]
        result = run.result(key)
        if result is None:
            missing = [b["digest"] for b in task["models"].values() if not self.blobs.stat(b["digest"])["whole"]]
            if missing:
                return {"missing": missing}
            adopted = os.path.isdir(run.folder(key))
            run.accept(key, task)
            run.start_worker(self.home, header["worker"])
            self.watched[(header["identity"], key)] = Watch(header["worker"])
            return {"state": "adopted" if adopted else "started"}
        return {"state": "done", "result": result}

    def do_read(self, header, body):
        """A piece of a task's file; the name is one of a few, never a path."""
        if header["name"] not in READABLE:
            raise Refused("not a readable file: %r" % (header["name"],))
        path = os.path.join(self.run(header).folder(header["key"]), header["name"])
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(min(header["offset"], size))
            return {"size": size}, file.read(min(header["limit"], LONGEST_BODY))

    def do_release(self, header, body):
        """The coordinator holds the update now, and needs these models no more."""
        run = self.run(header)
        for key in header["keys"]:
            path = os.path.join(run.folder(key), "update.safetensors")
            if os.path.exists(path):
                os.remove(path)
        for digest in header["digests"]:
            self.blobs.remove(digest)

    def do_cancel(self, header, body):
        self.run(header).cancel(header["key"])

    def do_list(self, header, body):
        """Every task of the run and its state: done, running, waiting or lost."""
        run = self.run(header)
        queued = run.queued()
        lives = run.worker_lives()
        tasks = {}
        for name in sorted(os.listdir(run.path)):
            if FOLDER.match(name):
                folder = os.path.join(run.path, name)
                done = os.path.exists(os.path.join(folder, "result.json"))
                running = is_held(os.path.join(folder, "lock"))
                waiting = lives and name in queued
                tasks[name] = "done" if done else "running" if running else "waiting" if waiting else "lost"
        return {"tasks": tasks, "worker": lives}

    def do_stop(self, header, body):
        self.run(header).stop()

    def do_remove(self, header, body):
        """Stop a run and remove its folder, and the blobs and the bundle that no other run names."""
        run = self.run(header)
        run.stop()
        digests, bundle = run.digests() | set(header["digests"]), run.bundle()
        shutil.rmtree(run.path)
        del self.runs[header["identity"]]
        for name in os.listdir(os.path.join(self.home, "runs")):
            other = Run(os.path.join(self.home, "runs", name))
            digests -= other.digests()
            if other.bundle() == bundle:
                bundle = None
        for digest in digests:
            self.blobs.remove(digest)
        if bundle and DIGEST.match(bundle):
            shutil.rmtree(os.path.join(self.home, "bundle", bundle), ignore_errors=True)
            self.blobs.remove(bundle)

    def do_probe(self, header, body):
        """Versions of packages in a Python, from their metadata, without importing them."""
        code = (
            "import json,sys\nfrom importlib.metadata import version, PackageNotFoundError\nfound={}\n"
            "for name in sys.argv[1:]:\n try: found[name]=version(name)\n except PackageNotFoundError: found[name]=None\n"
            "print(json.dumps({'python': sys.version.split()[0], 'packages': found}))"
        )
        command = [header["python"], "-c", code] + [str(name) for name in header["packages"]]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Refused("%s does not run: %s" % (header["python"], error))
        if done.returncode:
            raise Refused("%s does not run: %s" % (header["python"], done.stderr.decode("utf-8", "replace")[-500:]))
        return json.loads(done.stdout)

    def look(self):
        """Push what has changed in the watched tasks."""
        now = time.monotonic()
        check_liveness = now - self.looked_at >= LIVENESS_S
        if check_liveness:
            self.looked_at = now
        for (identity, key), watch in list(self.watched.items()):
            run = self.runs.get(identity)
            if run is None or not os.path.isdir(run.folder(key)):
                del self.watched[(identity, key)]
                continue
            self.push_progress(run, key, watch)
            if check_liveness and not run.worker_lives():
                self.revive(run, key, watch)
            result = run.result(key)
            if result is not None:
                del self.watched[(identity, key)]
                self.send({"push": "result", "key": key, "result": result})

    def revive(self, run, key, watch):
        """The worker is gone: a task that nobody has begun gets a new one, once; any other has failed."""
        if not watch.revived and os.path.basename(run.folder(key)) in run.queued():
            watch.revived = True
            run.start_worker(self.home, watch.worker)
        else:
            run.fail(key, "the worker process ended before the task was done", True)

    def push_progress(self, run, key, watch):
        """Push the newest whole line of what has been written since the last look."""
        try:
            with open(os.path.join(run.folder(key), "progress.jsonl"), "rb") as file:
                if os.fstat(file.fileno()).st_size <= watch.offset:
                    return
                file.seek(watch.offset)
                fresh = file.read(CHUNK)
        except OSError:
            return
        end = fresh.rfind(b"\n") + 1
        watch.offset += end
        if end:
            try:
                self.send({"push": "progress", "progress": json.loads(fresh[:end].splitlines()[-1])})
            except ValueError:
                pass


class Line:
    """Buffered reading of a pipe that shows what it holds, so that select() can be trusted for the rest."""

    def __init__(self, descriptor):
        self.descriptor = descriptor
        self.buffer = bytearray()

    def read(self, size):
        while len(self.buffer) < size:
            fresh = os.read(self.descriptor, CHUNK)
            if not fresh:
                break
            self.buffer += fresh
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data


def serve(home):
    """Answer frames from stdin until it ends."""
    source, sink = sys.stdin.fileno(), os.dup(sys.stdout.fileno())
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.set_inheritable(sink, False)

    def send(header, body=b""):
        data = memoryview(encode_frame(header, body))
        while data:
            data = data[os.write(sink, data) :]

    line = Line(source)
    agent = Agent(home, send)
    while True:
        if line.buffer or select.select([source], [], [], TICK_S if agent.watched else None)[0]:
            frame = read_frame(line.read)
            if frame is None:
                return
            agent.answer(*frame)
        agent.look()


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    serve(os.environ.get("FEDCTL_HOME") or os.path.join(os.path.expanduser("~"), ".fedctl"))
