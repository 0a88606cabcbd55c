"""Public keys and the file by which sshd lets them in: reading both, and writing one line of the second.

What sshd takes is written down in sshd(8) under AUTHORIZED_KEYS FILE FORMAT.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from pathlib import Path

from fedctl.node.owner.errors import CONFIGURATION, STATE, OwnerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional, Tuple

KINDS = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
LONGEST = 64 * 1024
LONGEST_COMMENT = 100


class PublicKey:
    """One public key: its kind, its bytes in base64, and what its owner calls it."""

    def __init__(self, kind: str, blob: str, comment: str = "") -> None:
        self.kind = kind
        self.blob = blob
        self.comment = "".join(letter for letter in comment if letter.isprintable())[:LONGEST_COMMENT]
        digest = hashlib.sha256(base64.b64decode(blob)).digest()
        self.fingerprint = "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    def __str__(self) -> str:
        return f"{self.kind} {self.blob}"


class Line:
    """A line of authorized_keys: its options, as they stand there, and the key that it lets in."""

    def __init__(self, number: int, options: str, key: str) -> None:
        self.number = number
        self.options = options
        self.key = key


def read(path: Path) -> PublicKey:
    """The one public key of a file; raises OwnerError for anything else, a private key above all."""
    try:
        text = path.read_bytes()[:LONGEST].decode("utf-8", "replace")
    except OSError as error:
        raise OwnerError(f"{path} cannot be read: {error.strerror}", code=STATE) from None
    if "PRIVATE KEY" in text or text.startswith("PuTTY-User-Key-File"):
        raise OwnerError(
            f"{path} is a private key, which must never leave the machine of who it belongs to",
            "have the coordinator send the file beside it, whose name ends in .pub",
            code=CONFIGURATION,
        )
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    if len(lines) != 1:
        raise OwnerError(
            f"{path} holds {len(lines)} lines, and one public key is wanted",
            "enroll each key from a file of its own",
            code=CONFIGURATION,
        )
    kind, _, rest = lines[0].partition(" ")
    if kind.endswith("-cert-v01@openssh.com"):
        raise OwnerError(f"{path} is a certificate", "give the public key that it is for", code=CONFIGURATION)
    if kind not in KINDS:
        is_key = any(f" {known} " in f" {lines[0]} " for known in KINDS)
        what = "has options before its key" if is_key else "is no public key that sshd takes"
        raise OwnerError(f"{path} {what}", "give a line such as `ssh-ed25519 AAAA... name`", code=CONFIGURATION)
    blob, _, comment = rest.strip().partition(" ")
    if kind_within(blob) != kind:
        raise OwnerError(f"{path} is damaged: it is no {kind} key", "have it sent again", code=CONFIGURATION)
    return PublicKey(kind, blob, comment.strip())


def kind_within(blob: str) -> str:
    """What the bytes of a key say that it is; empty where they are none."""
    try:
        content = base64.b64decode(blob, validate=True)
        (size,) = struct.unpack(">I", content[:4])
        return content[4 : 4 + size].decode("ascii") if len(content) > 4 + size else ""
    except (binascii.Error, ValueError, struct.error):
        return ""


def lines_of(text: str) -> List[Line]:
    """The lines of an authorized_keys that let a key in."""
    found = []
    for number, line in enumerate(rows(text), start=1):
        options, key = split(line.strip())
        if key:
            found.append(Line(number, options, key))
    return found


def rows(text: str) -> List[str]:
    """The lines of a file as sshd parts them."""
    lines = text.split("\n")
    return lines[:-1] if not lines[-1] else lines


def split(line: str) -> Tuple[str, str]:
    """The options and the base64 of a line's key; empty ones where it has none."""
    if line.startswith("#"):
        return "", ""
    words = fields(line)
    for place in (0, 1):
        if len(words) > place + 1 and kind_within(words[place + 1]):
            return words[0] if place else "", words[place + 1]
    return "", ""


def fields(line: str) -> List[str]:
    """A line's words; a blank between double quotes parts nothing, and a quote after a backslash is none."""
    words: List[str] = []
    word, is_quoted, before = "", False, ""
    for letter in line:
        if letter in " \t" and not is_quoted:
            if word:
                words.append(word)
            word = ""
        else:
            word += letter
            is_quoted ^= letter == '"' and before != "\\"
        before = letter
    return [*words, word] if word else words


def command_of(options: str) -> Optional[str]:
    """The command that a line's options force; None where they force none."""
    begin = options.lower().find('command="')
    if begin < 0 or (begin and options[begin - 1] != ","):
        return None
    rest, command, before = options[begin + 9 :], "", ""
    for letter in rest:
        if letter == '"' and before != "\\":
            return command.replace('\\"', '"')
        command, before = command + letter, letter
    return None


def line_for(key: PublicKey, command: str) -> str:
    """The line that lets a key run one command, and do nothing else; raises OwnerError for one that cannot stand there.

    `restrict` forbids forwarding of every kind, a terminal and ~/.ssh/rc, and what later versions of sshd add.
    """
    if any(not letter.isprintable() or letter in '"\\' for letter in command):
        raise OwnerError(
            f"the command {command!r} cannot stand in authorized_keys",
            "name a Python and a folder without quotes and backslashes",
            code=CONFIGURATION,
        )
    return f'restrict,command="{command}" {key} {key.comment}'.rstrip()
