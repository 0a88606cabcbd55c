"""Runs of the whole program: a federation's folder, `fedctl launch` to its end, and what it leaves."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "fedctl"]
CODE = Path(__file__).parent / "federation"
LONGEST_S = 1200


@dataclass(frozen=True)
class Run:
    """The run `claim` of a federation in a folder of its own, with nodes that nobody else uses."""

    folder: Path

    @classmethod
    def launch(cls, folder: Path, federation: Mapping[str, Any], code: Iterable[str]) -> "Run":
        """Run a federation, with these files for its code, to its end."""
        for name in code:
            shutil.copy(CODE / name, folder)
        (folder / "fed.yaml").write_text(json.dumps(federation))  # JSON is YAML
        run = cls(folder)
        try:
            run.fedctl("launch", "--run", "claim")
        except BaseException:  # a worker outlives whoever started it
            subprocess.run([*COMMAND, "stop", "claim"], cwd=folder, env=run.environment, capture_output=True)
            raise
        return run

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "FEDCTL_HOME": str(self.folder / "home"), "NO_COLOR": "1"}

    @property
    def rounds(self) -> list[Path]:
        """Each round's folder, in order; 0000 is the first model's."""
        return sorted((self.folder / "runs" / "claim" / "rounds").glob("[0-9]*"))[1:]

    def fedctl(self, *arguments: str) -> str:
        done = subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
        )
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout
