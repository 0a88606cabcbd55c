"""The owner of a node of a bed: enrolls keys there, approves, and looks, by the real command."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bed import Bed
from tests.bed.server import Server

COMMAND = [sys.executable, "-m", "fedctl", "node"]
POLICY = f"pythons: [{sys.executable}]\n"
"""The tests' own Python may be used as it is; all else as where there is no policy."""


@dataclass(frozen=True)
class Owner:
    """A node's owner, at that node: its home, and the file that its sshd reads."""

    server: Server
    authorized_keys: Path

    @property
    def folder(self) -> Path:
        return self.server.home / ".fedctl-node"

    @property
    def home(self) -> Path:
        """Where the one key that is enrolled keeps its files."""
        return Path(self.json("show")["keys"][0]["home"])

    def node(self, *arguments: str | Path, code: int = 0, umask: int = -1) -> subprocess.CompletedProcess[str]:
        """Run `fedctl node` to its end and check its exit code."""
        environment = {**os.environ, "HOME": str(self.server.home), "NO_COLOR": "1"}
        for name in ("FEDCTL_HOME", "FEDCTL_NODE_HOME"):
            environment.pop(name, None)
        words = [*COMMAND, *map(str, arguments)]
        done = subprocess.run(
            words, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, umask=umask
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: str | Path, code: int = 0) -> Any:
        return json.loads(self.node(*arguments, "--json", code=code).stdout)

    def enroll(self, key: Path, policy: str = POLICY, **options: Any) -> str:
        """Let a key in, by a policy; returns what is said of it."""
        file = self.server.folder / "policy.yaml"
        file.write_text(policy)
        words = ("--key", f"{key}.pub", "--policy", file, "--authorized-keys", self.authorized_keys)
        return self.node("enroll", *words, **options).stdout

    def approve_all(self) -> list[str]:
        """Approve whatever waits; returns the digests."""
        waiting = [asked["digest"] for asked in self.json("show")["pending"]]
        for digest in waiting:
            self.node("approve", digest, "--yes")
        return waiting


def bring_up(bed: Bed, name: str, **options: Any) -> Owner:
    """A node of a bed that lets nobody in but whom its owner enrolls."""
    authorized = bed.folder / f"{name}.authorized_keys"
    authorized.touch()
    return Owner(bed.add(name, authorized=authorized, **options), authorized)
