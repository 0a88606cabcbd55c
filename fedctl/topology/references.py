"""Whether `file.py:Class` is there: read as text, never imported, since it may need what only a node has."""

import ast
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedctl.topology.document import Address
from fedctl.topology.problems import Problem
from fedctl.topology.wording import either, nearest, quoted


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    """What a module binds at its top level; `open` when a star import binds more than can be read."""

    classes: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()
    open: bool = False

    def has(self, name: str) -> bool:
        return self.open or name in self.classes or name in self.others


def reference_problem(reference: str, folder: Path, address: Address) -> Problem | None:
    """What is wrong with a reference of the right form, if anything."""
    file, _, member = reference.partition(":")
    try:
        if not (folder / file).is_file():
            raise FileNotFoundError
        source = (folder / file).read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None)
        text = f"cannot read {quoted(file)}: {why}" if why else f"there is no file {quoted(file)}"
        return Problem(address=address, text=text, hint=_file_hint(file, folder))
    try:
        names = _names(source)
    except SyntaxError as error:
        text = f"{file}:{error.lineno or 1}: not valid Python: {error.msg}"
        return Problem(address=address, text=text, hint=f"try `python {file}`")
    except (ValueError, RecursionError, MemoryError):
        return Problem(address=address, text=f"{file}: not valid Python", hint=f"try `python {file}`")
    if names.has(member):
        return None
    return Problem(address=address, text=f"no class {member} in {file}", hint=_class_hint(member, names))


def _file_hint(file: str, folder: Path) -> str:
    there = sorted(path.name for path in folder.glob("*.py"))
    if (near := nearest(file, there)) is not None:
        return f"did you mean `{near}`?"
    return f"the Python files there are {either(there[:8], word='and')}" if there else "there is no Python file there"


def _class_hint(member: str, names: _Names) -> str:
    if (near := nearest(member, sorted(names.classes)) or nearest(member, sorted(names.others))) is not None:
        return f"did you mean `{near}`?"
    if names.classes:
        return f"the classes there are {either(sorted(names.classes)[:8], word='and')}"
    return "it has no class at its top level"


def _names(source: bytes) -> _Names:
    """Raises what `ast.parse` raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = ast.parse(source)
    classes: set[str] = set()
    others: set[str] = set()
    for statement in _statements(module.body):
        match statement:
            case ast.ClassDef(name=name):
                classes.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                others.update((alias.asname or alias.name).partition(".")[0] for alias in aliases)
            case ast.Assign(targets=targets):
                others.update(node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                others.add(name)
    return _Names(classes=frozenset(classes), others=frozenset(others), open="*" in others)


def _statements(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Statements at the top level, also those under an `if`, `try` or `with`."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _statements(ast.iter_child_nodes(statement))
