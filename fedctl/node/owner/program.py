"""The node's own program: its files, as they are copied into the owner's folder and into one file to carry along.

An enrolled node runs this copy and nothing that a coordinator sends, until its owner has approved it.
"""

from __future__ import annotations

import hashlib
import io
import os
import pkgutil
import shlex
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import fedctl
from fedctl.node.agent import discard, make_folder, write_whole
from fedctl.node.owner.errors import CONFIGURATION, OwnerError
from fedctl.node.owner.known import LIST, as_json
from fedctl.node.owner.place import Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict

OWNER = "fedctl.node.owner"
MODULES = ("fedctl", "fedctl.node", "fedctl.node.agent", "fedctl.node.environment", OWNER)
EPOCH = (1980, 1, 1, 0, 0, 0)
MAIN = b"""import sys
from fedctl.node.owner.cli import main
sys.exit(main(name="python3 fedctl-node.pyz"))
"""


def sources() -> Dict[str, bytes]:
    """The program's files by their paths, wherever this one runs from: a folder, or one file."""
    package = find_spec(OWNER)
    places = (package and package.submodule_search_locations) or []
    names = [f"{OWNER}.{module.name}" for module in pkgutil.iter_modules(list(places))]
    found = {}
    for name in (*MODULES, *sorted(names)):
        spec = find_spec(name)
        if spec is None or spec.origin is None or spec.loader is None:
            raise OwnerError(f"{name} is missing from this fedctl", "install fedctl again")
        is_package = spec.submodule_search_locations is not None
        path = name.replace(".", "/") + ("/__init__.py" if is_package else ".py")
        found[path] = spec.loader.get_data(spec.origin)  # type: ignore[attr-defined]
    return {**found, f"fedctl/{LIST}": as_json()}


def install(place: Place) -> None:
    """Put the program into the owner's folder, whole or not at all."""
    files = sources()

    def fill(folder: Path) -> None:
        for name, content in files.items():
            target = folder / name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(target, content)
        launcher = f"{OWNER.replace('.', '/')}/serve.py"
        write_whole(folder / "serve.py", files[launcher])
        write_whole(folder / "version", f"{fedctl.__version__} {digest_of(files)}\n".encode())

    discard(place.program)
    make_folder(place.program, fill)


def digest_of(files: Dict[str, bytes]) -> str:
    """The first digits of the agent's SHA-256, as a coordinator names it."""
    return hashlib.sha256(files["fedctl/node/agent.py"]).hexdigest()[:12]


def command(place: Place, python: str, fingerprint: str) -> str:
    """What sshd is to run for a key: without `site`, and without what the environment says of Python."""
    path = Path(python).expanduser()
    if not path.is_absolute() or not os.access(path, os.X_OK):
        raise OwnerError(f"{python} is no program", "name a Python by its whole path in --python", code=CONFIGURATION)
    words = [str(path), "-I", "-S", str(place.program / "serve.py"), fingerprint]
    return " ".join(shlex.quote(word) for word in words)


def export(target: Path) -> None:
    """Write the program into one file that `python3` runs: for nodes that have no fedctl. The same bytes each time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted({**sources(), "__main__.py": MAIN}.items()):
            archive.writestr(zipfile.ZipInfo(name, EPOCH), content, zipfile.ZIP_DEFLATED)
    try:
        write_whole(target, b"#!/usr/bin/env python3\n" + buffer.getvalue())
        target.chmod(0o755)
    except OSError as error:
        raise OwnerError(f"{target} cannot be written: {error.strerror}", "name another file") from None


def python_here() -> str:
    """The Python that runs this, by its own path: a virtual environment may be gone one day."""
    base = Path(getattr(sys, "_base_executable", None) or sys.executable)
    return str(base)
