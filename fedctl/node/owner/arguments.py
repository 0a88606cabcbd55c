"""The arguments of a task, as a guard reads them: which paths they may mean, and whose classes they name."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, Optional, Tuple

DEEPEST = 50
LONGEST = 100_000

_BREAKS = re.compile(r"[\s,:;|=\"'()\[\]{}]+")
"""Where code may break a text up into paths."""
_ADDRESS = re.compile(r"://|::|\Afile:")
"""What readers of files take for another machine, or for a path in disguise."""


def texts(task: Mapping[str, Any]) -> Iterator[Any]:
    """Every text in the arguments of the user's classes, of fedctl's own and of Lightning's Trainer, keys too."""
    for name in ("model_args", "data_args", "trainer", "finetune", "local", "codec"):
        yield from _texts(task.get(name), 0)
    for callback in task.get("callbacks") or []:
        yield from _texts(callback["args"], 0)


def _texts(value: Any, depth: int) -> Iterator[Any]:
    if depth > DEEPEST:
        raise RecursionError("its arguments are nested too deeply")
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _texts(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item, depth + 1)


def refused_paths(allowed: Iterable[str], found: Iterable[Any], folder: Optional[Path] = None) -> Optional[str]:
    """Why texts may not be named: one means a path outside, or an address; None where each may.

    Links are followed, and so is `..`. Where code runs in a `folder`, what is in there may be named.
    """
    inside = [real(path) for path in allowed]
    if folder is not None:
        inside.append(real(str(folder)))
    for text in found:
        if not isinstance(text, str) or len(text) > LONGEST or "\0" in text:
            return f"{text!r:.200} is no path"
        for part in {text, *_BREAKS.split(text)}:
            if not _may_be_path(part):
                continue
            if _ADDRESS.search(text) or not all(_is_below(path, inside) for path in _readings(part, folder)):
                return (
                    f"the owner of this node lets no task name {text!r:.200}: it is in none of the paths that are open"
                )
    return None


def _may_be_path(text: str) -> bool:
    return "/" in text or text == ".." or text.startswith(("~", "$", "file:"))


def _readings(text: str, folder: Optional[Path]) -> Iterator[str]:
    """The paths that code may take a text for: as it stands, and with what `~` and variables stand for."""
    at_home = os.path.expanduser(text)  # noqa: PTH111  Path raises for a user who is not there
    for each in {text, at_home, os.path.expandvars(at_home)}:
        yield real(str(Path(folder or "/", each)))


def real(path: str) -> str:
    """The whole path, without links; its last parts need not be there."""
    return os.path.realpath(os.path.expanduser(path))  # noqa: PTH111  as above


def _is_below(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def refused_classes(task: Mapping[str, Any], bundle: Path) -> Optional[str]:
    """Why the classes that a task names may not be used: one is neither the bundle's nor fedctl's own.

    An installed package, or Python itself, has classes that do harm as they are built. Lightning's are looked at before
    that; of local rules and codecs the file has to define the class, for what it merely imports may be such a one.
    """
    for where, target in _targets(task):
        path, colon, member = str(target).partition(":")
        if colon and where in ("local", "codec"):
            is_own = _defines(_module(bundle, path), member)
        elif colon:
            is_own = is_in(bundle, path)
        else:
            is_own = where in ("local", "codec") and path.isidentifier()
        if not isinstance(target, str) or not is_own:
            return f"`{where}: {target!r:.200}` is neither in the approved code nor one of fedctl's own"
    return None


def _targets(task: Mapping[str, Any]) -> Iterator[Tuple[str, Any]]:
    """Each class that a task names, beside the field that names it."""
    yield from ((name, task[name]) for name in ("model", "data"))
    yield from (("callbacks", callback["class"]) for callback in task.get("callbacks") or [])
    if task.get("local"):
        yield "local", task["local"]["name"]
    yield from (("codec", stage["name"]) for stages in (task.get("codec") or {}).values() for stage in stages)


def is_in(bundle: Path, path: str) -> bool:
    """Whether a module, as a path with or without `.py`, or with dots, is a file of the bundle's project.

    One that is called as Python's own would be taken for that, since that is imported by then.
    """
    return _module(bundle, path) is not None


def _module(bundle: Path, path: str) -> Optional[Path]:
    """The file of a module of the bundle's project."""
    name = path[:-3] if path.endswith(".py") else path
    parts = name.replace(".", "/").split("/")
    if not all(part.isidentifier() for part in parts) or _is_pythons(parts[0]) or parts[0] == "fedctl":
        return None
    place = bundle.joinpath("project", *parts)
    files = (place / "__init__.py", place.with_name(f"{place.name}.py"))  # in the order in which Python looks
    return next((file for file in files if file.is_file()), None)


def _defines(module: Optional[Path], name: str) -> bool:
    """Whether a class of that name is defined at the top of a module."""
    if module is None or not name.isidentifier():
        return False
    return bool(
        re.search(rf"^class {name}\s*[(:\[]", module.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    )


def _is_pythons(name: str) -> bool:
    library = Path(os.__file__).parent
    return (
        name in sys.builtin_module_names
        or (library / name).exists()
        or (library / f"{name}.py").exists()
        or any((library / "lib-dynload").glob(f"{name}.*"))
    )
