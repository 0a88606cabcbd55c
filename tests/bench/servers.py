"""Where the benchmarks over SSH take place: real servers, a client in a process of its own, and OpenSSH beside it.

Every one of them is timed over a line that is open already, so that what is compared is not the login.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bed import LoopbackBed
from tests.bed.bed import Bed
from tests.bed.server import program
from tests.bench.measure import LONGEST_S, ROOT

MEMORY = Path("/dev/shm")
"""Files here cost no disk, where the machine has such a place."""
OPEN_TO_MANY = ("MaxStartups 1000", "MaxSessions 100")
GCM = "aes128-gcm@openssh.com"
MB = 1e6


@contextmanager
def loopback(*names: str, relayed: bool = False) -> Iterator[LoopbackBed]:
    """Servers whose files are in memory, below the bed's folder."""
    with (
        tempfile.TemporaryDirectory(prefix="fedctl-bench-", dir=MEMORY if MEMORY.is_dir() else None) as folder,
        LoopbackBed(Path(folder) / "bed", relayed=relayed) as bed,
    ):
        bed.add_all(names, config=OPEN_TO_MANY)
        yield bed


def reached(bed: Bed, names: Iterable[str]) -> list[dict[str, Any]]:
    """What bare paramiko needs to know of servers."""
    servers = [bed.nodes[name] for name in names]
    return [
        {
            "address": server.address,
            "port": server.port,
            "user": server.user,
            "key": str(server.key),
            "host_key": server.known_hosts().split()[2],
        }
        for server in servers
    ]


def client(bed: Bed, action: str, *, bound_s: float = LONGEST_S, **arguments: Any) -> dict[str, Any] | None:
    """What an action of `tests.bench.client` found, in the bed's home; None where it took longer than its bound."""
    try:
        done = subprocess.run(
            client_argv(action, arguments),
            env=environment(bed),
            cwd=ROOT,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=bound_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode:
        raise RuntimeError(f"the client's `{action}` failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def client_argv(action: str, arguments: Mapping[str, Any]) -> list[str]:
    return [sys.executable, "-m", "tests.bench.client", action, json.dumps(arguments)]


def environment(bed: Bed) -> dict[str, str]:
    """Of a coordinator at the bed's home."""
    return {**bed.environment, "FEDCTL_HOME": str(bed.folder / "coordinator"), "PYTHONPATH": str(ROOT)}


def openssh(bed: Bed, name: str, *words: str, cipher: str | None = GCM, login: bool = False) -> list[str]:
    """The argv of ssh or scp; it shares a line that `open_line` has opened, but with a `login` of its own."""
    settings = {"BatchMode": "yes", "ControlPath": "none" if login else f"{bed.folder}/%n.line"}
    if cipher:
        settings["Ciphers"] = cipher
    options = [f"-o{setting}={value}" for setting, value in settings.items()]
    return [program(name), "-F", str(bed.config), *options, *words]


def open_line(bed: Bed, *names: str) -> None:
    """Open the lines that OpenSSH's programs share; they end with the servers."""
    for name in names:
        argv = openssh(bed, "ssh", "-oControlMaster=yes", "-oControlPersist=yes", name, "true")
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def cat(bed: Bed, node: str, source: Path, target: Path, *, up: bool, login: bool = False) -> subprocess.Popen[bytes]:
    """A file through `ssh ... cat`, one way or the other."""
    if up:
        with source.open("rb") as here:
            return subprocess.Popen(openssh(bed, "ssh", node, f"cat > {target}", login=login), stdin=here)
    with target.open("wb") as here:
        argv = openssh(bed, "ssh", node, f"cat {source}", login=login)
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=here)


def finished(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Wait for processes that must end well."""
    for process in processes:
        if status := process.wait(LONGEST_S):
            raise RuntimeError(f"`{' '.join(map(str, process.args))}` ended with status {status}")


def on_servers(folder: Path) -> None:
    """Put the nodes of a federation of the workshop on servers of their names, with this interpreter."""
    file = folder / "fed.yaml"
    text = file.read_text()
    name = text.partition('name: "')[2].partition('"')[0]
    file.write_text(text.replace("host: local", f'host: "{name}", python: {sys.executable}'))
