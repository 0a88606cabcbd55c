"""The work by Flower's deployment: a SuperLink, a SuperNode for each node behind a relay that counts, and `flwr run`.

They are started all at once, and are let wait for each other. What Flower does beside that is switched off: see `OFF`.
"""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Self

from tests.bed import processes
from tests.bed.relay import Relay
from tests.bench.measure import ROOT
from tests.bench.peers.course import Course, Seen
from tests.bench.peers.watch import Watch

HERE = Path(__file__).parent
BIN = ROOT / ".venv" / "flower" / "bin"
OFF: Mapping[str, str] = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
SWITCHED_OFF = (
    "telemetry, update check, installing of the app's dependencies at run time, evaluation on the nodes, TLS; "
    "no hosted hub or grid is reached"
)
LONGEST_S = 1800.0
UP_S = 60.0
LEAVE_S = 20.0


def flower(folder: Path, images: Path, *, nodes: int, rounds: int) -> Seen:
    """A run of that many rounds, from the SuperLink's start to the last model."""
    shutil.copytree(HERE / "app", folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HERE / "work.py", folder / "app" / "mnist")
    home, port = folder / "home", _free_port()
    home.mkdir()
    (home / "config.toml").write_text(f'[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        **OFF,
        "PATH": f"{BIN}:{os.environ['PATH']}",  # they start each other by name
        "FLWR_HOME": str(home),
    }
    with ExitStack() as stack:
        lines = [stack.enter_context(closing(Relay("127.0.0.1", port))) for _ in range(nodes)]
        watch = stack.enter_context(Watch(lines, nodes_call=True))
        programs = stack.enter_context(Programs(folder, environment))
        began = time.time()
        no_uv = "--disable-runtime-dependency-installation"
        programs.start("superlink", "flower-superlink", "--insecure", f"--port={port}", no_uv)
        for site, line in enumerate(lines):
            place = (f"--superlink=127.0.0.1:{line.port}", f"--port={_free_port()}")
            site_of = f"--node-config=partition-id={site}"
            node = programs.start(f"site-{site}", "flower-supernode", "--insecure", *place, site_of)
            watch.roots[node.pid] = f"site-{site}"
        processes.wait_until(lambda: programs.live() and _listens(port), "the SuperLink does not listen", UP_S)
        submitted = time.time()
        config = f'rounds={rounds} nodes={nodes} images="{images}" out="{folder}"'
        programs.start("run", "flwr", "run", str(folder / "app"), "bench", "--run-config", config, "--stream")
        processes.wait_until(lambda: programs.live() and _saved(folder), "Flower has no last model", LONGEST_S)
    told = _told(folder)
    opened = {fact["round"]: fact["opened"] for fact in told if "opened" in fact}
    closed = {fact["round"]: fact["closed"] for fact in told if "closed" in fact}
    course = Course(
        began=began,
        submitted=submitted,
        rounds=[(opened[number], closed[number]) for number in sorted(closed)],
        ended=next(fact["saved"] for fact in told if "saved" in fact),
        model=str(folder / "model.npz"),
        updates=sum(fact.get("updates", 0) for fact in told),
    )
    return Seen(course=course, samples=watch.samples, own_cpu_s=watch.cpu_s)


class Programs:
    """Flower's programs, each with a log in the folder; they are asked to end, and made to, when it is closed."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._started.values()):
            process.terminate()
        for process in self._started.values():
            try:
                process.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                process.kill()

    def start(self, name: str, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
        with (self._folder / f"{name}.log").open("wb") as log:
            self._started[name] = subprocess.Popen(
                [str(BIN / program), *arguments],
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self._started[name]

    def live(self) -> bool:
        """True; raises ChildProcessError with the log of one that failed."""
        for name, process in self._started.items():
            if process.poll():
                log = (self._folder / f"{name}.log").read_text(errors="replace")
                raise ChildProcessError(f"{name} ended with status {process.returncode}:\n{log[-4000:]}")
        return True


def _told(folder: Path) -> list[dict[str, Any]]:
    """What the app said of its rounds so far."""
    file = folder / "rounds.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _saved(folder: Path) -> bool:
    return any("saved" in fact for fact in _told(folder))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
