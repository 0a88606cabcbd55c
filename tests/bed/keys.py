"""Keys, certificates and agents, made by OpenSSH's own tools."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bed.processes import wait_until


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    """A private key at the path and its public half beside it (`.pub`); `kind` is ed25519, ecdsa or rsa."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Small and with few rounds: strength takes time to make.
    bits = ["-b", "2048"] if kind == "rsa" else []
    _keygen("-t", kind, *bits, "-N", passphrase, "-a", "1", "-C", path.name, "-f", path)
    return path


def public(key: Path) -> str:
    """`TYPE BASE64` of a private key's public half."""
    return " ".join(Path(f"{key}.pub").read_text().split()[:2])


def fingerprint(key: Path) -> str:
    """As OpenSSH shows it: `SHA256:...`."""
    return _keygen("-l", "-f", f"{key}.pub").split()[1]


def sign(key: Path, authority: Path, *principals: str, validity: str = "always:forever") -> Path:
    """A user certificate for the key, beside it (`-cert.pub`), where ssh looks for one."""
    _keygen("-s", authority, "-I", key.name, "-n", ",".join(principals), "-V", validity, f"{key}.pub")
    return Path(f"{key}-cert.pub")


@contextmanager
def agent(socket: Path, *keys: Path) -> Iterator[dict[str, str]]:
    """An ssh-agent that holds the keys; gives the environment that leads to it."""
    words = ["ssh-agent", "-D", "-a", str(socket)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as process:
        environment = {"SSH_AUTH_SOCK": str(socket)}
        try:
            wait_until(socket.exists, "ssh-agent does not listen")
            for key in keys:
                subprocess.run(["ssh-add", "-q", str(key)], env={**os.environ, **environment}, check=True)
            yield environment
        finally:
            process.terminate()


def _keygen(*arguments: str | Path) -> str:
    words = ["ssh-keygen", "-q", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
