"""This node's own key, by which the others of a run know it, and the keys of others that its owner has pinned."""

from __future__ import annotations

import re

from fedctl.node.agent import write_whole
from fedctl.node.owner import publickey
from fedctl.node.owner.errors import USAGE, OwnerError
from fedctl.node.owner.place import Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Optional

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}\Z")


def make(place: Place) -> None:
    """Make the key; one that is there stays. Raises OwnerError."""
    if place.identity.exists():
        return
    import subprocess

    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "fedctl-node", "-f", str(place.identity)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise OwnerError(f"ssh-keygen cannot be run: {error.strerror}", "install OpenSSH's client") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise OwnerError(f"this node's identity could not be made: {said[-200:]}", f"look at {place.identity}")
    place.identity.chmod(0o600)


def fingerprint(place: Place) -> Optional[str]:
    """The fingerprint of this node's key; None where it has none."""
    try:
        return publickey.read(place.identity.with_suffix(".pub")).fingerprint
    except OwnerError:
        return None


def peers(place: Place) -> Dict[str, str]:
    """The fingerprints that were pinned, by the names of their nodes."""
    try:
        lines = place.peers.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    return {words[0]: words[1] for words in (line.split() for line in lines) if len(words) == 2}


def trust(place: Place, name: str, pinned: str) -> None:
    """Pin a node's fingerprint: another one under that name is refused from then on."""
    if not NAME.match(name):
        raise OwnerError(f"{name!r} is no name of a node", "give the name that it has in fed.yaml", code=USAGE)
    if not FINGERPRINT.match(pinned):
        raise OwnerError(
            f"{pinned!r} is no fingerprint", "its owner reads it in `fedctl node show`: SHA256:...", code=USAGE
        )
    if pinned == fingerprint(place):
        raise OwnerError(
            "that is the fingerprint of this node itself", f"the owner of {name} reads theirs in `fedctl node show`"
        )
    known = peers(place)
    before = known.get(name, pinned)
    if before != pinned:
        raise OwnerError(
            f"{name} is pinned already, to {before}",
            f"if its owner says that it has a new one, `fedctl node distrust {name}` first",
        )
    known[name] = pinned
    place.make()
    write_whole(place.peers, "".join(f"{one} {key}\n" for one, key in sorted(known.items())).encode())


def distrust(place: Place, name: str) -> None:
    """Take a pin away. Raises OwnerError where there is none."""
    known = peers(place)
    if name not in known:
        raise OwnerError(f"{name} is not pinned", "`fedctl node peers` lists those that are")
    del known[name]
    write_whole(place.peers, "".join(f"{one} {key}\n" for one, key in sorted(known.items())).encode())
