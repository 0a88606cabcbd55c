"""Copies a template into a folder: what `fedctl init` does.

A template is a folder with a `fed.yaml`, and the code and the README that go with it. The templates are
`fedctl/_templates` in an installed wheel, and `templates` beside the package in a checkout.
"""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from fedctl.errors import StateError, UsageError, closest


def _templates_folder(package: Path) -> Path:
    """Where the templates are, for the package in that folder: only a wheel has the first place."""
    installed = package / "_templates"
    return installed if installed.is_dir() else package.parent / "templates"


TEMPLATES_FOLDER = _templates_folder(Path(__file__).resolve().parent)

_ELSEWHERE = "name another folder: `fedctl init DIR`"
_MARK = "fed.yaml"
_LEFTOVERS = {"__pycache__", "runs", "lightning_logs"}
"""What trying a template out in place leaves in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A ready-to-run federation; the summary is the first line below the title of its README."""

    name: str
    summary: str
    folder: Path

    def files(self) -> tuple[Path, ...]:
        """What it consists of, relative to its folder, sorted."""
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return tuple(sorted(path for path in found if not _is_leftover(path)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaffolded:
    """What was written where; `files` are relative to the folder."""

    folder: Path
    template: str
    files: tuple[Path, ...]


def templates() -> tuple[Template, ...]:
    """All templates, by name."""
    marks = sorted(TEMPLATES_FOLDER.glob(f"*/{_MARK}"))
    return tuple(
        Template(name=mark.parent.name, summary=_summary(mark.with_name("README.md")), folder=mark.parent)
        for mark in marks
    )


def scaffold(folder: Path, template: str = "digits", *, force: bool = False) -> Scaffolded:
    """Copy a template into the folder, which is made if need be.

    Without `force` an existing file of the same name is refused, before anything is written. Files of other names stay
    as they are in any case.

    Raises:
        UsageError: no such template, or files are in the way.
        StateError: the folder cannot be written.
    """
    chosen = _find(template)
    files = chosen.files()
    if os.path.lexists(folder) and not folder.is_dir():
        raise StateError(f"{folder} is a file, not a folder", hint=_ELSEWHERE)
    if taken := [folder / path for path in files if os.path.lexists(folder / path)]:
        _refuse_to_overwrite(taken, folder, template, force=force)
    with _as_state_error(folder):
        for path in files:
            _write(folder / path, (chosen.folder / path).read_bytes())
    return Scaffolded(folder=folder, template=template, files=files)


def _refuse_to_overwrite(taken: Sequence[Path], folder: Path, template: str, *, force: bool) -> None:
    """Raise UsageError for what may not be overwritten: any file without `force`, and a folder even so."""
    if blocked := [path for path in taken if path.is_dir() or not force]:
        again = shlex.join(["fedctl", "init", str(folder), "--template", template, "--force"])
        hint = "these are folders: move them away" if force else f"`{again}` overwrites them"
        raise UsageError(f"already there: {', '.join(map(str, blocked))}", hint=hint)


def _find(name: str) -> Template:
    known = {template.name: template for template in templates()}
    if name in known:
        return known[name]
    if not known:
        raise StateError(f"no templates in {TEMPLATES_FOLDER}", hint="install fedctl again")
    near = closest(name, known)
    there = f"the templates are {', '.join(known)}"
    raise UsageError(f"no template is called {name!r}", hint=f"did you mean `{near}`? {there}" if near else there)


def _summary(readme: Path) -> str:
    lines = (line.strip() for line in readme.read_text(encoding="utf-8").splitlines())
    return next((line for line in lines if line and not line.startswith("#")), "")


def _is_leftover(path: Path) -> bool:
    return path.suffix == ".pyc" or any(part in _LEFTOVERS or part.startswith(".") for part in path.parts)


def _write(target: Path, data: bytes) -> None:
    """Whole or not at all. A link is replaced, not followed; the mode is a new file's, whatever the template has."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    try:
        partial.write_bytes(data)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _as_state_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StateError(f"cannot write in {folder}: {reason}", hint=_ELSEWHERE) from error


def missing_requirements(made: Scaffolded) -> tuple[str, ...]:
    """The packages that the folder's requirements.txt names and this Python does not have."""
    listed = made.folder / "requirements.txt"
    if not listed.exists():
        return ()
    names = [re.split(r"[^A-Za-z0-9._-]", line.strip(), maxsplit=1)[0] for line in listed.read_text().splitlines()]
    return tuple(name for name in names if name and not _is_installed(name))


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
