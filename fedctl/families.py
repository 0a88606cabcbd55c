"""Members of a family by their names: those of its table, and a user's own as `my_package.module:Class`.

Standard library only; the nodes run this module too. A family imports a member's module when it builds one.
"""

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedctl.errors import ConfigError, suggestion


def target_of(name: str, table: Mapping[str, str], *, family: str, plural: str) -> str:
    """The import string of a member; `module:Class`, or `file.py:Class`, is one's own.

    Raises ConfigError for another name. Nothing is imported.
    """
    if name in table:
        return table[name]
    path, colon, member = name.partition(":")
    module = path.removesuffix(".py").replace("/", ".")
    if colon and member.isidentifier() and all(part.isidentifier() for part in module.split(".")):
        return f"{module}:{member}"
    known = f"the {plural} are {', '.join(table)}, or `my_package.module:Class`"
    raise ConfigError(f"{family}: there is none called {name!r}", hint=suggestion(name, table, known))


def imported(target: str, *, family: str) -> type[Any]:
    """The class that an import string names; raises ConfigError where it cannot be imported."""
    module, _, member = target.partition(":")
    try:
        kind: type[Any] = getattr(importlib.import_module(module), member)
    except Exception as error:  # a user's module may raise anything while it is imported
        raise ConfigError(f"{family}: {target} cannot be imported: {error}") from error
    return kind


@contextmanager
def importable_from(folder: Path | None) -> Iterator[None]:
    """Have modules in a folder (None: in no other) beside those that are installed."""
    before = list(sys.path)
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before
