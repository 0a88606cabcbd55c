"""The code bundle: the user's files and fedctl's node part in one tar, named by the SHA-256 of its bytes.

The same files give the same bytes. Only code enters it: Python files and small settings. Rows, models, keys, whatever
is called a secret, fed.yaml (which names the other nodes), environments and what runs leave behind do not, nor does
what git ignores. What looks like code and stays for its name is told: `left_out`.
"""

import ast
import contextlib
import fnmatch
import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
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
LEFT_OUT_FOLDERS = ("data", "secrets", "credentials", "build", "dist", "env")
"""Folders that may hold code, and stay."""
MADE_FOLDERS = ("runs", "venv", "node_modules", "wheels", "lightning_logs", "*.egg-info")
"""Folders that tools fill: they stay, and nobody misses them."""
LEFT_OUT_MODULES = ("secret.py", "secrets.py", "credentials.py", "passwords.py")
LEFT_OUT_FILES = (
    "id_*",
    "*secret*",
    "*credential*",
    "*password*",
    "*token[!i]*",  # a tokenizer is none
    "*tokeni[!sz]*",
    "known_hosts*",
)
"""Files that are no modules: a module may be about secrets and hold none."""
_MISSING = re.compile(r"No module named '(\w{1,60}(?:\.\w{1,60}){0,9})'")
NODE_PART = (
    "__init__.py",
    "header.py",
    "masked.py",
    "strictjson.py",
    "terms.py",
    "records.py",
    "names.py",
    "errors.py",
    "families.py",
    "weights.py",
    "partition.py",
    "share.py",
    "privacy.py",
    "codecs",
    "dp/__init__.py",
    "dp/accounting.py",
    "dp/clipping.py",
    "dp/distributed.py",
    "dp/noise.py",
    "secagg",
    "node",
)
OWNERS_PART = "owner"
"""What a node's owner has put there already, or does not want: it guards, and comes from nobody who is guarded."""


def pack(federation: Federation) -> bytes:
    """The federation's bundle; raises ConfigError when the user's files are surprisingly large."""
    buffer = io.BytesIO()
    package = Path(fedctl.__file__).parent
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for part in NODE_PART:
            for path in [package / part] if part.endswith(".py") else sorted((package / part).rglob("*.py")):
                if path.parent.name == OWNERS_PART:
                    continue
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
    """The user's files that travel, in a fixed order; raises ConfigError for a .gitignore that cannot be read."""
    return (path for path, travels in _code(folder) if travels)


def left_out(folder: Path) -> dict[str, int]:
    """What looks like code and stays for its name, such as `data/` and `secrets.py`, and how many files each is."""
    found = {}
    for path, travels in _code(folder):
        if not travels:
            is_folder = path.is_dir()
            number = sum(1 for _ in _files_of_code(path)) if is_folder else 1
            if number:
                found[f"{path.relative_to(folder).as_posix()}{'/' if is_folder else ''}"] = number
    return found


def explain_missing(folder: Path, error: str) -> str | None:
    """The hint for an error about a module that is missing where it does not travel; None where it is another's."""
    if not (named := _MISSING.search(error)):
        return None
    travelling = {place for path in project_files(folder) for place in (path, *path.parents)}
    parts = named[1].split(".")
    for length in range(1, len(parts) + 1):
        place = folder.joinpath(*parts[:length])
        if place.is_dir() and place not in travelling and any(place.glob("*.py")):
            return _stays(f"{place.relative_to(folder)}/")
        module = place.with_name(f"{place.name}.py")
        if module.is_file() and module not in travelling:
            return _stays(str(module.relative_to(folder)))
    return None


def _stays(name: str) -> str:
    return f"{name} is here and goes to no node: give it another name, or take it out of .gitignore if that names it"


def _code(folder: Path) -> Iterator[tuple[Path, bool]]:
    """What looks like code, but for what git ignores and tools make: files that travel, files and folders that stay."""
    whole = folder.resolve()
    ignored = _Ignored(whole)
    for parent, folders, files in os.walk(whole):
        place = folder / Path(parent).relative_to(whole)
        if Path(parent) != whole:
            ignored.read(Path(parent))
        folders[:] = sorted(
            name
            for name in folders
            if not _is_hidden(name)
            and not _is_one_of(name, MADE_FOLDERS)
            and not ignored.names(Path(parent, name), is_folder=True)
        )
        for name in folders:
            path = Path(parent, name)
            if _is_one_of(name, LEFT_OUT_FOLDERS) and not path.is_symlink() and not _is_environment(path):
                yield place / name, False
        folders[:] = [name for name in folders if not _is_one_of(name, LEFT_OUT_FOLDERS)]
        for name in sorted(files):
            if _looks_like_code(Path(parent, name)) and not ignored.names(Path(parent, name)):
                secret = LEFT_OUT_MODULES if name.endswith(".py") else LEFT_OUT_FILES
                yield place / name, not (_is_one_of(name, secret) or _is_federation(Path(parent, name)))


def _is_federation(path: Path) -> bool:
    """Whether it is the file of a federation, which names the other nodes and how to reach them."""
    if path.suffix not in (".yaml", ".yml"):
        return False
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return all(any(re.match(rf"['\"]?{key}['\"]?\s*:", line) for line in lines) for key in ("nodes", "task"))


def _files_of_code(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        yield from (path for path in (Path(parent, name) for name in files) if _looks_like_code(path))


def _looks_like_code(path: Path) -> bool:
    return (
        path.suffix in CODE
        and not _is_hidden(path.name)
        and not _is_one_of(path.name, ("fed.yaml*",))
        and path.is_file()
        and not path.is_symlink()
    )


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__pycache__"))


def _is_one_of(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name.lower(), pattern) for pattern in patterns)


def _is_environment(folder: Path) -> bool:
    return (folder / "pyvenv.cfg").exists() or (folder / "conda-meta").exists()


class _Ignored:
    """What git ignores of a folder: the .gitignore nearest to a path that speaks of it decides.

    Those above count up to the repository's root, with its .git/info/exclude. What they say of the whole folder does
    not: it was asked for by name.
    """

    def __init__(self, folder: Path) -> None:
        self._specs: dict[Path, GitIgnoreSpec] = {}
        above = [folder, *folder.parents]
        root = next((i for i, parent in enumerate(above) if (parent / ".git").exists()), 0)
        for parent in above[: root + 1]:
            self.read(parent)
        if self.names(folder, is_folder=True):
            for parent in folder.parents:
                if spec := self._specs.get(parent):
                    name = f"{folder.relative_to(parent).as_posix()}/"
                    others = [pattern for pattern in spec.patterns if pattern.match_file(name) is None]
                    self._specs[parent] = type(spec)(others)

    def read(self, folder: Path) -> None:
        """Read what a folder has of it; raises ConfigError."""
        files = [folder / ".git" / "info" / "exclude", folder / ".gitignore"]  # what is said last counts
        if rules := [rule for path in files if path.is_file() for rule in _rules(path)]:
            self._specs[folder] = _spec(rules)

    def names(self, path: Path, *, is_folder: bool = False) -> bool:
        for parent in path.parents:
            if spec := self._specs.get(parent):
                said = _said(spec, path.relative_to(parent).as_posix(), is_folder=is_folder)
                if said is not None:
                    return said
        return False


def _said(spec: "GitIgnoreSpec", name: str, *, is_folder: bool) -> bool | None:
    """What the last rule for a path says.

    A file's folders have been asked about before, so what pathspec marks as found through one of them counts no more:
    else `!*/` would bring back each file that `*` ignores.
    """
    for pattern in reversed(spec.patterns):
        found = pattern.match_file(f"{name}/" if is_folder else name)
        if found and (is_folder or found.match.groupdict().get("ps_d") is None):
            return pattern.include
    return None


def _rules(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}", hint="what it names would go to the nodes: make it readable"
        ) from error


def _spec(rules: Iterable[str]) -> "GitIgnoreSpec":
    """Rules that make no sense count for nothing, as with git."""
    from pathspec import GitIgnoreSpec  # few folders have a .gitignore

    def makes_sense(rule: str) -> bool:
        with contextlib.suppress(ValueError):
            GitIgnoreSpec.from_lines([rule])
            return True
        return False

    return GitIgnoreSpec.from_lines(filter(makes_sense, rules))


def preload(federation: Federation) -> tuple[str, ...]:
    """The heavy modules that a worker imports before it forks: torch, and the Lightning that the user's code names."""
    names: set[str] = set()
    for target in federation.task.targets:
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


def _largest(folder: Path) -> str:
    largest = max(project_files(folder), key=lambda path: path.stat().st_size)
    return f"{largest.relative_to(folder)} ({largest.stat().st_size // 2**20} MB)"


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    content = path.read_bytes()
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    archive.addfile(member, io.BytesIO(content))
