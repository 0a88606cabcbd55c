"""Which files are fedctl's own: by their digests, also where the whole of fedctl is not there to compare with."""

from __future__ import annotations

import hashlib
import json
import pkgutil
from pathlib import Path
from typing import Dict

import fedctl

LIST = "known.json"
"""What stands in its stead beside a copy of the owner's part alone."""


def known() -> Dict[str, str]:
    """The SHA-256 of each of fedctl's modules, by its path in a bundle; empty where nobody wrote them down."""
    package = Path(fedctl.__file__).parent
    if (package / "records.py").exists():
        return {
            f"fedctl/{path.relative_to(package).as_posix()}": digest_of(path.read_bytes())
            for path in sorted(package.rglob("*.py"))
        }
    try:
        listed = pkgutil.get_data("fedctl", LIST)
    except OSError:
        return {}
    return dict(json.loads(listed or b"{}"))


def as_json() -> bytes:
    """The same, to be written to `LIST`."""
    return json.dumps(known(), indent=0, sort_keys=True).encode()


def digest_of(content: bytes) -> str:
    """The SHA-256 of a file's bytes."""
    return hashlib.sha256(content).hexdigest()
