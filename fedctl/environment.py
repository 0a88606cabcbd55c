"""What the environment of a node must hold: composed here, made there by `fedctl.node.environment`.

A node with `python:` uses that as it is, a local node the coordinator's own; for any other one an environment is made.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from platform import python_version_tuple
from typing import Any

from fedctl.bundle import preload
from fedctl.errors import ConfigError
from fedctl.federation import Federation, Node
from fedctl.records import Blob
from fedctl.strictjson import printable

PACKAGES = ("torch", "pytorch-lightning", "lightning", "numpy", "safetensors")
"""What a task needs, one Lightning of the two being enough."""
_RECENT = re.compile(r"3\.(1[0-9]|[2-9][0-9])(\.|$)|[4-9]\.")
_LIGHTNINGS = ("pytorch-lightning", "lightning")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FILE_OPTIONS = re.compile(r"-[rce]|--(requirement|constraint|editable)\b|(-f|--find-links)[ =]*(?!https?:)\S")
_FOLDER = re.compile(r"(\.{0,2}/|\.\.?$|~|file:)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """An environment to make, of Python 3.11, say, if it can be had; `wheels` lie in `wheelhouse`, by file name."""

    python: str
    requirements: str
    wheels: Mapping[str, Blob] = field(default_factory=dict)
    wheelhouse: Path = Path()

    def needs(self) -> dict[str, Any]:
        """What the agent is asked for."""
        wheels = {name: blob.digest for name, blob in self.wheels.items()}
        return {"environment": {"python": self.python, "requirements": self.requirements, "wheels": wheels}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A Python to use as it is; it has to have the `packages` beside those of every task."""

    python: str
    packages: tuple[str, ...] = ()

    def needs(self) -> dict[str, Any]:
        """What the agent is asked for."""
        return {"python": self.python, "packages": [*PACKAGES, *self.packages]}


def environments(federation: Federation) -> dict[str, Environment | Given]:
    """By node, all but those that use the coordinator's own Python.

    Raises ConfigError for a requirements.txt that cannot travel or a wheelhouse that holds no wheels.
    """
    found: dict[str, Environment | Given] = {}
    requirements: str | None = None
    wheels: dict[Path, dict[str, Blob]] = {}
    for node in federation.nodes:
        if node.python is not None:
            found[node.name] = Given(python=node.python, packages=federation.packages)
        elif node.host != "local":
            if requirements is None:
                requirements = _requirements(federation)
            wheelhouse = federation.folder / _wheelhouse(node)
            if node.wheelhouse and wheelhouse not in wheels:
                wheels[wheelhouse] = _wheels(wheelhouse, node)
            found[node.name] = Environment(
                python=".".join(python_version_tuple()[:2]),
                requirements=requirements,
                wheels=wheels.get(wheelhouse, {}),
                wheelhouse=wheelhouse,
            )
    return found


def compose(written: str, versions: Mapping[str, str], *, name: str = "requirements.txt") -> str:
    """The user's requirements as they were written, and below them those of ours that they do not name.

    An empty version is not pinned. Raises ConfigError for a line that needs another file: only this one travels.
    """
    named = set()
    for number, line in _lines(written):
        if _FILE_OPTIONS.match(line) or _FOLDER.match(line):
            raise ConfigError(
                f"{name}:{number}: `{line}` needs another file, and only this one goes to the nodes",
                hint="write the packages themselves there; your own code goes with the bundle in any case",
            )
        if match := _NAME.match(line):
            named.add(_normalised(match.group()))
    added = [f"{package}=={version}" if version else package for package, version in versions.items()]
    missing = [line for line in added if _normalised(line.partition("==")[0]) not in named]
    whole = written if not written or written.endswith("\n") else f"{written}\n"
    return whole + "".join(f"{line}\n" for line in missing)


def pinned(lightning: str, more: Iterable[str] = ()) -> dict[str, str]:
    """The coordinator's versions of what every task needs, with that one of the two Lightnings, and of some `more`."""
    return {package: version_here(package) or "" for package in ("torch", lightning, "numpy", "safetensors", *more)}


def version_here(package: str) -> str | None:
    """The coordinator's version of a package, without what tells one build from another (`+cpu`)."""
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def is_recent(version: str) -> bool:
    """Whether tasks can run in that Python: 3.10 or newer."""
    return _RECENT.match(version) is not None


def missing(packages: Mapping[str, Any]) -> list[str]:
    """What tasks need and a Python with these versions of `PACKAGES`, and of what was asked for beside, has not."""
    asked = [name for name in packages if name not in PACKAGES]
    lacking = [name for name in ("torch", "numpy", "safetensors", *asked) if not packages.get(name)]
    has_lightning = packages.get("pytorch-lightning") or packages.get("lightning")
    return lacking if has_lightning else [*lacking, "pytorch-lightning"]


def differences(packages: Mapping[str, Any]) -> list[str]:
    """Where a node's torch or Lightning is not of the coordinator's version, in words."""
    pairs = [(name, str(packages.get(name) or ""), version_here(name)) for name in ("torch", *_LIGHTNINGS)]
    return [
        f"{name} is {printable(there)} there and {here} here"
        for name, there, here in pairs
        if there and here and there.partition("+")[0] != here
    ]


def _requirements(federation: Federation) -> str:
    path = federation.folder / "requirements.txt"
    try:
        written = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    lightning = preload(federation)[1].partition(".")[0].replace("_", "-")
    return compose(written, pinned(lightning, federation.codec.packages), name=str(path))


def _lines(written: str) -> Iterator[tuple[int, str]]:
    """The lines that say something, with their numbers; one that a backslash continues is one."""
    whole, began = "", 0
    for number, line in enumerate(written.splitlines(), start=1):
        began = began if whole else number
        whole += line.removesuffix("\\")
        if not line.endswith("\\"):
            said = re.sub(r"(^|\s)#.*", "", whole).strip()
            if said:
                yield began, said
            whole = ""
    if whole.strip():
        yield began, whole.strip()


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _wheelhouse(node: Node) -> Path:
    try:
        return Path(node.wheelhouse or "").expanduser()
    except RuntimeError:
        raise ConfigError(
            f"node {node.name}: wheelhouse: {node.wheelhouse}: there is no such account here",
            hint="write the folder's path in full",
        ) from None


def _wheels(folder: Path, node: Node) -> dict[str, Blob]:
    found = sorted(path for path in folder.glob("*.whl") if path.is_file()) if folder.is_dir() else []
    if not found:
        raise ConfigError(
            f"node {node.name}: wheelhouse: {folder} {'holds no wheels' if folder.is_dir() else 'is no folder'}",
            hint=f"`pip download --dest {folder} --requirement requirements.txt torch pytorch-lightning safetensors` "
            "fills it, on a machine like the node",
        )
    return {path.name: _blob(path, path.stat().st_size, path.stat().st_mtime_ns) for path in found}


@cache
def _blob(path: Path, size: int, _changed: int) -> Blob:
    """Gigabytes are read once, though a launch asks twice."""
    with path.open("rb") as file:
        return Blob(digest=hashlib.file_digest(file, "sha256").hexdigest(), size=size)


def allowed_instead(stand: Mapping[str, Any]) -> str:
    """What to write where a node's owner lets no environment be made, by what its agent says; empty elsewhere."""
    match stand:
        case {"pythons": [str(first), *_]}:
            return f"write `python: {printable(first)}` for that node in fed.yaml"
        case {"pythons": []}:
            return "ask its owner to name a Python, with what your code needs, in `pythons:` of the policy"
        case _:
            return ""
