"""The code bundle: the user's files and fedctl's node part in one tar, named by the SHA-256 of its bytes.

The same files give the same bytes. Only code enters it: Python files and small settings. Rows, models, keys, whatever
is called a secret, fed.yaml (which names the other nodes), environments and what runs leave behind do not, nor does
what a .gitignore names.
"""

import ast
import fnmatch
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import fedctl
from fedctl.errors import ConfigError
from fedctl.federation import Federation

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

LARGEST = 50 * 2**20
CODE = (".py", ".toml", ".cfg", ".ini", ".json", ".yaml", ".yml", ".txt")
"""What may be code or a setting of it; any other file stays where it is."""
LEFT_OUT_FOLDERS = (
    "runs",
    "data",
    "build",
    "dist",
    "env",
    "venv",
    "node_modules",
    "wheels",
    "lightning_logs",
    "*.egg-info",
)
LEFT_OUT_FILES = (
    "fed.yaml*",
    "id_*",
    "*secret*",
    "*credential*",
    "*password*",
    "*token*",
    "known_hosts*",
    "*.pem",
    "*.key",
)
NODE_PART = ("__init__.py", "header.py", "records.py", "errors.py", "weights.py", "partition.py", "codecs", "node")


def pack(federation: Federation) -> bytes:
    """The federation's bundle; raises ConfigError when the user's files are surprisingly large."""
    buffer = io.BytesIO()
    package = Path(fedctl.__file__).parent
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for part in NODE_PART:
            for path in [package / part] if part.endswith(".py") else sorted((package / part).rglob("*.py")):
                _add(archive, path, f"fedctl/{path.relative_to(package)}")
        total = 0
        for path in project_files(federation.folder):
            total += path.stat().st_size
            if total > LARGEST:
                raise ConfigError(
                    f"{federation.folder}: the code for the nodes is over {LARGEST // 2**20} MB; the largest file is "
                    f"{_largest(federation.folder)}",
                    hint="keep data and models in a folder named `data`, or elsewhere",
                )
            _add(archive, path, f"project/{path.relative_to(federation.folder)}")
    return buffer.getvalue()


def project_files(folder: Path) -> Iterator[Path]:
    """The user's files that travel, in a fixed order."""
    ignored = _Ignored()
    for parent, folders, files in os.walk(folder):
        if ".gitignore" in files:
            ignored.read(Path(parent))
        folders[:] = sorted(
            name
            for name in folders
            if not _is_left_out(name, LEFT_OUT_FOLDERS) and not ignored.names(Path(parent, name), is_folder=True)
        )
        for name in sorted(files):
            path = Path(parent, name)
            is_code = path.suffix in CODE and not _is_left_out(name.lower(), LEFT_OUT_FILES)
            if is_code and path.is_file() and not path.is_symlink() and not ignored.names(path):
                yield path


class _Ignored:
    """What the .gitignore files say, as git reads them: the one nearest to a path that speaks of it decides."""

    def __init__(self) -> None:
        self._specs: dict[Path, GitIgnoreSpec] = {}

    def read(self, folder: Path) -> None:
        from pathspec import GitIgnoreSpec  # few folders have a .gitignore

        self._specs[folder] = GitIgnoreSpec.from_lines((folder / ".gitignore").read_text(errors="replace").splitlines())

    def names(self, path: Path, *, is_folder: bool = False) -> bool:
        for parent in path.parents:
            if spec := self._specs.get(parent):
                said = spec.check_file(f"{path.relative_to(parent).as_posix()}{'/' if is_folder else ''}").include
                if said is not None:
                    return said
        return False


def preload(federation: Federation) -> tuple[str, ...]:
    """The heavy modules that a worker imports before it forks: torch, and the Lightning that the user's code names."""
    names: set[str] = set()
    for target in (federation.task.model, federation.task.data):
        source = federation.folder / target.partition(":")[0]
        try:
            tree = ast.parse(source.read_text())
        except (OSError, SyntaxError, ValueError):
            continue  # the worker's own import tells the user what is wrong
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    return ("torch", "lightning.pytorch") if "lightning" in names else ("torch", "pytorch_lightning")


def _is_left_out(name: str, patterns: tuple[str, ...]) -> bool:
    return name.startswith((".", "__pycache__")) or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _largest(folder: Path) -> str:
    largest = max(project_files(folder), key=lambda path: path.stat().st_size)
    return f"{largest.relative_to(folder)} ({largest.stat().st_size // 2**20} MB)"


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    content = path.read_bytes()
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    archive.addfile(member, io.BytesIO(content))
