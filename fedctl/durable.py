"""Files that are whole, and on the disk for good, whatever dies: written, copied, and told by their SHA-256."""

import hashlib
import os
import shutil
from pathlib import Path

from fedctl.records import Blob


def write_atomically(path: Path, content: bytes, *, mode: int = 0o666) -> Blob:
    """Write a file under another name and rename it into place, whole or not at all; it is on the disk for good.

    A `mode` of 0600 is for what its user alone may read.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync(path.parent)
    return Blob(digest=hashlib.sha256(content).hexdigest(), size=len(content))


def digest(path: Path) -> Blob:
    """What a file holds, by its SHA-256."""
    with path.open("rb") as file:
        return Blob(digest=hashlib.file_digest(file, "sha256").hexdigest(), size=path.stat().st_size)


def is_there(path: Path, blob: Blob) -> bool:
    """Whether a file is there and holds what it should."""
    return path.exists() and path.stat().st_size == blob.size and digest(path) == blob


def copy_atomically(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, by a hard link where the file system can, else by a copy.

    Where `source` is on the disk for good, so is `target`.
    """
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, temporary)
        sync(temporary)
    temporary.rename(target)
    temporary.unlink(missing_ok=True)  # renaming one link over another of the same file leaves both
    sync(target.parent)


def sync(path: Path) -> None:
    """What a file holds, or which names a folder has, is on the disk for good when this returns."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
