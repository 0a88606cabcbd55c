"""Keys of secure aggregation: of a node for good (Ed25519), of one round (X25519), and what is sealed with these.

The door to `cryptography`, with `masks`. A key that is derived is bound to what it is for, so it is used for one thing.
"""

import base64
import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from fedctl.secagg.place import a_node

KEY_SIZE, SIGNATURE_SIZE, TAG_SIZE = 32, 64, 16
"""In bytes."""
_ONCE = bytes(12)  # each key seals one message, so its nonce need not change
_PIN = re.compile(r"(\S+)\s+(SHA256:[A-Za-z0-9+/]{43})")


class Identity:
    """A node's Ed25519 key, in a file as OpenSSH keeps it: its name among the nodes. `public` has 32 bytes."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw()

    @classmethod
    def load(cls, path: Path) -> "Identity":
        """The key in an OpenSSH private key file without a passphrase.

        Raises ValueError where it is no such key or others may read it, and FileNotFoundError.
        """
        if path.stat().st_mode & 0o077:
            raise ValueError(f"others may read the key {path}: chmod 600 {path}")
        try:
            key = load_ssh_private_key(path.read_bytes(), password=None)
        except Exception as error:  # the library raises a dozen kinds for what is no key, or has a passphrase
            raise ValueError(f"{path} is no OpenSSH private key without a passphrase") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(f"{path} is no Ed25519 key: ssh-keygen -t ed25519 -N '' -f {path}")
        return cls(key)

    @classmethod
    def create(cls, path: Path) -> "Identity":
        """A new key in the files `path` (0600) and `path`.pub; raises FileExistsError where there is one."""
        key = Ed25519PrivateKey.generate()
        kept = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(kept)
        shown = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        path.with_name(f"{path.name}.pub").write_bytes(shown + b"\n")
        return cls(key)

    @classmethod
    def ephemeral(cls) -> "Identity":
        """A new key that is in no file."""
        return cls(Ed25519PrivateKey.generate())

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.public)

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return self._key.sign(message)


def fingerprint(public: bytes) -> str:
    """What `ssh-keygen -l` says of an Ed25519 public key: `SHA256:` and 43 characters."""
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in (b"ssh-ed25519", public))
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def is_signed(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the signature on a message is this Ed25519 key's."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def read_pins(text: str) -> dict[str, str]:
    """Fingerprints by node, from lines `NAME SHA256:...`, `#` before a comment; ValueError for any other line."""
    pins: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        said = line.partition("#")[0].strip()
        if not said:
            continue
        match = _PIN.fullmatch(said)
        if match is None or match[1] in pins:
            raise ValueError(f"line {number} is not `NAME SHA256:...`, or names a node again")
        pins[a_node(match[1])] = match[2]
    return pins


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An X25519 key pair, 32 bytes each."""

    private: bytes = field(repr=False)
    public: bytes

    @classmethod
    def new(cls) -> "Pair":
        key = X25519PrivateKey.generate()
        return cls(private=key.private_bytes_raw(), public=key.public_key().public_bytes_raw())


def public_of(private: bytes) -> bytes:
    """The public key of an X25519 private key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agreed(private: bytes, public: bytes, info: bytes) -> bytes:
    """The 32 bytes that two X25519 pairs agree on for a purpose; ValueError for a public key that agrees with all."""
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise ValueError("an X25519 key of small order") from error
    return derived(shared, info)


def derived(secret: bytes, info: bytes) -> bytes:
    """32 bytes for a purpose, from a secret, by HKDF-SHA256 (RFC 5869) without salt."""
    return HKDF(algorithm=SHA256(), length=KEY_SIZE, salt=None, info=info).derive(secret)


def seal(private: bytes, public: bytes, message: bytes, info: bytes) -> bytes:
    """A message for the holder of `public`, by ChaCha20-Poly1305; `info` says when, from whom, to whom.

    One message an `info`: its key follows from both pairs and that alone.
    """
    return ChaCha20Poly1305(agreed(private, public, info)).encrypt(_ONCE, message, info)


def unseal(private: bytes, public: bytes, sealed: bytes, info: bytes) -> bytes:
    """What the holder of `public` sealed; ValueError where it is not whole, or was sealed with another `info`."""
    try:
        return ChaCha20Poly1305(agreed(private, public, info)).decrypt(_ONCE, sealed, info)
    except InvalidTag:
        raise ValueError("it is not what was sealed") from None
