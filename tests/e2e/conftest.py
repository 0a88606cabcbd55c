"""The real command, as a subprocess, in a folder and a node home of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "fedctl"]


@dataclass(frozen=True)
class Place:
    """A federation's folder and its nodes' home."""

    folder: Path
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "FEDCTL_HOME": str(self.home), "COLUMNS": "100", "NO_COLOR": "1"}

    def fedctl(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and check its exit code."""
        done = subprocess.run(
            [*COMMAND, *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.fedctl(*arguments, "--json", code=code).stdout)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command and leave it running."""
        return subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def events(self, run: str = "latest") -> list[dict[str, Any]]:
        journal = self.folder / "runs" / run / "events.jsonl"
        return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []

    def wait_for(self, condition: Callable[[list[dict[str, Any]]], bool], run: str, seconds: float = 120) -> None:
        """Wait until the run's journal has what is wanted."""
        deadline = time.monotonic() + seconds
        while not condition(self.events(run)):
            assert time.monotonic() < deadline, self.events(run)[-5:]
            time.sleep(0.05)

    def edit(self, file: str, old: str, new: str) -> None:
        text = (self.folder / file).read_text()
        assert old in text
        (self.folder / file).write_text(text.replace(old, new))

    def processes(self) -> list[int]:
        """Every process of this place that still lives: it has the home in its environment."""
        mark = f"FEDCTL_HOME={self.home}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found


@pytest.fixture(scope="module")
def make_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Place]]:
    """Make a folder from a template; whatever still runs there at the end is ended."""
    places: list[Place] = []

    def make(template: str) -> Place:
        base = tmp_path_factory.mktemp(template)
        place = Place(folder=base / "federation", home=base / "home")
        places.append(place)
        place.folder.parent.mkdir(exist_ok=True)
        subprocess.run([*COMMAND, "init", str(place.folder), "-t", template], check=True, env=place.environment)
        return place

    yield make
    for place in places:
        for pid in place.processes():
            os.kill(pid, 9)
