"""The keys by which servers are known: read as `ssh` reads them, judged strictly, and added one line at a time.

A file is read line by line, and a line that says nothing sensible counts for nothing; none is ever rewritten.
"""

import base64
import binascii
import fcntl
import hashlib
import hmac
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from fedctl.errors import HostKeyError, OfferedKey, StateError
from fedctl.transports.sshconfig import Endpoint

_ACCEPT = "`fedctl check --accept-new`"
_FILES_KEPT = 4096
"""How many answers are kept of what a file says about a name: a few for each node."""


@dataclass(frozen=True, slots=True)
class HostKey:
    """A public key as servers offer it; `blob` is its wire form."""

    type: str
    blob: bytes

    @classmethod
    def of(cls, offered: OfferedKey) -> "HostKey":
        """The key that an error has carried."""
        return cls(offered.type, base64.b64decode(offered.blob))

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it: SHA256:..."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    @property
    def base64(self) -> str:
        return base64.b64encode(self.blob).decode()

    @property
    def rsa_bits(self) -> int:
        """The length of an RSA key's modulus; 0 for other keys and for damaged ones."""
        fields = list(_fields(self.blob))
        return int.from_bytes(fields[2], "big").bit_length() if fields[:1] == [b"ssh-rsa"] and len(fields) == 3 else 0

    def line(self, name: str) -> str:
        """What a known_hosts file says about it."""
        return f"{name} {self.type} {self.base64}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a known_hosts file; `marker` is empty, `@revoked` or `@cert-authority`."""

    file: Path
    number: int
    marker: str
    names: str
    key: HostKey

    @property
    def place(self) -> str:
        return f"{self.file}:{self.number}"


def names_of(endpoint: Endpoint) -> tuple[str, ...]:
    """The name under which its key is recorded, and then the one under which `ssh` takes a key for it as well."""
    if endpoint.host_key_alias is not None:
        return (endpoint.host_key_alias.lower(),)
    address = endpoint.address.lower()
    return (address,) if endpoint.port == 22 else (f"[{address}]:{endpoint.port}", address)


def known_types(endpoint: Endpoint) -> tuple[str, ...]:
    """The types of key by which the server is known: to be asked for first, so that a known key is what it shows."""
    return tuple(dict.fromkeys(entry.key.type for entry in _entries(endpoint, names_of(endpoint)) if not entry.marker))


def judge(endpoint: Endpoint, key: HostKey) -> None:
    """Return if the server is known by this key; raises HostKeyError."""
    names = names_of(endpoint)
    name = names[0]
    every = _entries(endpoint, names)
    shown = f"{key.type} {key.fingerprint}"
    for entry in every:
        if entry.marker == "@revoked" and entry.key == key:
            raise HostKeyError(
                f"the host key of {name} is revoked: {shown}, in {entry.place}",
                hint="do not connect: ask whoever runs the server for its new key",
            )
    if 0 < key.rsa_bits < endpoint.least_rsa_bits:
        raise HostKeyError(
            f"the host key of {name} has {key.rsa_bits} bits, and RequiredRSASize asks for {endpoint.least_rsa_bits}",
            hint="let the server have an ed25519 key: `ssh-keygen -A` there",
        )
    own = _entries(endpoint, names[:1])
    known = [entry for entry in own if not entry.marker]
    if any(entry.key == key for entry in known or every if not entry.marker):
        return
    if known:  # the key of another port of that address is no substitute for its own
        raise _changed(name, shown, known)
    authorities = [entry for entry in own if entry.marker == "@cert-authority"]
    raise _unknown(name, key, authorities)


def accept(file: Path, name: str, key: HostKey) -> None:
    """Add a line that makes the key known, unless there is one; raises StateError."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "r+b", buffering=0) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            present = stream.read()
            if any(entry.key == key and not entry.marker and _is_for(entry, name) for entry in _parse(file, present)):
                return
            gap = b"" if present.endswith(b"\n") or not present else b"\n"
            stream.write(gap + key.line(name).encode() + b"\n")
    except OSError as error:
        raise StateError(f"{file} cannot be written: {error.strerror}") from error


def _changed(name: str, shown: str, known: list[Entry]) -> HostKeyError:
    told = "; ".join(f"{entry.place} has {entry.key.type} {entry.key.fingerprint}" for entry in known)
    remove = [
        f"`ssh-keygen -R {shlex.quote(name)} -f {shlex.quote(str(file))}`"
        for file in dict.fromkeys(entry.file for entry in known)
    ]
    return HostKeyError(
        f"the host key of {name} is not the one that is known: the server shows {shown}, and {told}",
        hint=f"somebody may be in between; if the change is expected, {', '.join(remove)}, then {_ACCEPT}",
    )


def _unknown(name: str, key: HostKey, authorities: list[Entry]) -> HostKeyError:
    message = f"the host key of {name} is unknown: {key.type} {key.fingerprint}"
    hint = f"{_ACCEPT} shows it and asks"
    if authorities:
        message += f"; {authorities[0].place} trusts certificates for it, which fedctl does not take from servers"
        hint += ", and then knows the server by its plain key"
    offered = OfferedKey(name=name, type=key.type, blob=key.base64, fingerprint=key.fingerprint)
    return HostKeyError(message, hint=hint, offered=offered)


def _entries(endpoint: Endpoint, names: tuple[str, ...]) -> tuple[Entry, ...]:
    """What the files say about any of the names, in their order."""
    return tuple(entry for file in endpoint.known_hosts for name in names for entry in _about(file, name))


def _about(file: Path, name: str) -> tuple[Entry, ...]:
    try:
        status = file.stat()
    except OSError:
        return ()
    return _matching(file, status.st_mtime_ns, status.st_size, name)


@lru_cache(maxsize=_FILES_KEPT)
def _matching(file: Path, mtime_ns: int, size: int, name: str) -> tuple[Entry, ...]:
    return tuple(entry for entry in _read(file, mtime_ns, size) if _is_for(entry, name))


@lru_cache(maxsize=16)
def _read(file: Path, _mtime_ns: int, _size: int) -> tuple[Entry, ...]:
    try:
        return _parse(file, file.read_bytes())
    except OSError:  # as `ssh` does: a file that cannot be read makes nothing known
        return ()


def _parse(file: Path, data: bytes) -> tuple[Entry, ...]:
    lines = enumerate(data.split(b"\n"), start=1)
    return tuple(entry for number, line in lines if (entry := _entry(file, number, line)))


def _entry(file: Path, number: int, line: bytes) -> Entry | None:
    words = line.decode("utf-8", errors="replace").split()
    marker = words.pop(0) if words and words[0].startswith("@") else ""
    if len(words) < 3 or words[0].startswith("#") or marker not in {"", "@revoked", "@cert-authority"}:
        return None
    names, type, text = words[:3]
    blob = _decoded(text)
    if next(_fields(blob), None) != type.encode():
        return None
    return Entry(file, number, marker, names, HostKey(type, blob))


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _fields(blob: bytes) -> Iterator[bytes]:
    """The strings and numbers of a key's wire form, each behind its length of four bytes."""
    while len(blob) >= 4:
        size = int.from_bytes(blob[:4], "big")
        if size > len(blob) - 4:
            return
        yield blob[4 : 4 + size]
        blob = blob[4 + size :]


def _is_for(entry: Entry, name: str) -> bool:
    return _matcher(entry.names)(name)


@cache
def _matcher(names: str) -> Callable[[str], bool]:
    """Whether a line's names mean a server: made once a line, as each node asks each line."""
    if names.startswith("|"):
        return _hash_matcher(names)
    patterns = names.lower().split(",")
    if not set("*?!") & set(names):
        return frozenset(patterns).__contains__
    refused = [_pattern(pattern[1:]) for pattern in patterns if pattern.startswith("!")]
    wanted = [_pattern(pattern) for pattern in patterns if not pattern.startswith("!")]
    return lambda name: _has(wanted, name) and not _has(refused, name)


def _hash_matcher(text: str) -> Callable[[str], bool]:
    match text.split("|"):
        case ["", "1", salt, digest]:
            key, wanted = _decoded(salt), _decoded(digest)
            return lambda name: hmac.digest(key, name.encode(), "sha1") == wanted
        case _:
            return lambda _: False


def _has(patterns: Sequence[re.Pattern[str]], name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in patterns)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in text), re.DOTALL)
