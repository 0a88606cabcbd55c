"""A node whose owner guards it, on this machine and without sshd: the program that a forced command starts."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedctl.node.owner.cli import main
from fedctl.node.owner.place import Place
from fedctl.node.owner.publickey import PublicKey, read
from fedctl.transports import Process
from fedctl.transports.local import LocalTransport
from tests.bed.keys import make_key


@dataclass
class Guarded:
    """A way to it, by one key; `asked` is what a coordinator asks for, whatever that is."""

    place: Place
    key: PublicKey

    def open(self, argv: Sequence[str]) -> Process:
        """Start what the key's line of authorized_keys starts."""
        asked = {"SSH_ORIGINAL_COMMAND": shlex.join(argv)}
        words = [f"{name}={value}" for name, value in asked.items()]
        serve = [sys.executable, "-I", "-S", str(self.place.program / "serve.py"), self.key.fingerprint]
        return LocalTransport().open(["env", *words, *serve])


def enroll(folder: Path, name: str = "coordinator", policy: str = "") -> Guarded:
    """Enroll a key of that name on the node whose owner has that folder, by a policy."""
    file = make_key(folder / "keys" / name)
    words = ["--key", f"{file}.pub", "--authorized-keys", str(folder / "authorized_keys"), "--python", sys.executable]
    if policy:
        (folder / "policy.yaml").write_text(policy)
        words += ["--policy", str(folder / "policy.yaml")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDCTL_HOME", str(folder / "home"))
        patch.setenv("FEDCTL_NODE_HOME", str(folder / "owner"))
        assert main(["enroll", *words]) == 0
    return Guarded(Place(folder / "owner"), read(Path(f"{file}.pub")))
