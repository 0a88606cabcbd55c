"""What the code's shape promises: who imports whom, what stays out of the fast commands, and a few habits.

Read from the sources with `ast`, and where it is about time and memory, tried in a fresh interpreter.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from fedctl import errors, rundir
from fedctl.eventlines import dump
from tests.unit.runs import mid_round

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fedctl"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "_templates" not in path.parts
}
every_module = pytest.mark.parametrize("module", MODULES)

LONG = {
    "fedctl.node.agent": "it is sent to the nodes as one file",
    "fedctl.transports.ssh": "it is the one file that knows paramiko",
}
MOST_LINES = 300

PURE = {
    "errors": (),
    "strictjson": (),
    "names": ("strictjson",),
    "records": ("names", "strictjson"),
    "share": (),
    "traffic": (),
    "privacy": (),
    "federation": ("privacy", "share"),
    "ledger": ("records", "strictjson"),
    "events": ("ledger", "records", "traffic"),
    "eventlines": ("events", "ledger", "records", "strictjson", "traffic"),
    "roundstate": ("records", "traffic"),
    "runstate": ("records", "roundstate", "traffic"),
    "answers": ("events", "records", "runstate", "traffic"),
    "cycle": ("events", "records", "runstate"),
    "state": ("answers", "cycle", "events", "records", "runstate"),
    "telemetry": ("records", "strictjson"),
    "actions": ("records",),
    "decisions": ("actions", "events"),
    "claims": ("actions", "errors", "privacy", "records"),
    "demands": ("errors", "privacy"),
    "terms": ("records",),
    "sampling": ("federation",),
    "fleet": ("federation", "runstate", "sampling"),
    "forecast": ("federation", "fleet", "traffic"),
    "asking": ("actions", "federation", "fleet", "records", "runstate"),
    "secure": (
        "actions",
        "asking",
        "federation",
        "fleet",
        "privacy",
        "records",
        "roundstate",
        "runstate",
        "sampling",
        "secagg",
    ),
    "buffered": ("actions", "asking", "federation", "fleet", "records", "runstate"),
    "plan": (
        "actions",
        "asking",
        "buffered",
        "events",
        "federation",
        "fleet",
        "records",
        "sampling",
        "secure",
        "state",
    ),
    "tidying": ("records", "runstate"),
    "measures": ("federation", "records", "state"),
    "waiting": ("fleet", "records", "state"),
    "activity": ("events", "fleet", "records", "state", "traffic"),
    "report": ("activity", "events", "federation", "measures", "records", "state", "traffic", "waiting"),
}
"""Modules without disk, clock, network or torch, and what of ours they may see."""

ALLOWED = {
    "node": (
        "codecs",
        "dp",
        "errors",
        "header",
        "masked",
        "node",
        "privacy",
        "records",
        "secagg",
        "share",
        "strictjson",
        "terms",
        "weights",
    ),
    "views": (
        "activity",
        "errors",
        "events",
        "federation",
        "measures",
        "privacy",
        "records",
        "report",
        "state",
        "telemetry",
        "traffic",
        "views",
        "waiting",
    ),
    "topology": ("errors", "federation", "privacy", "records", "share", "topology"),
    "strategies": ("errors", "families", "federation", "header", "records", "strategies", "weights"),
    "codecs": ("codecs", "errors", "families", "header", "records", "weights"),
    "families": ("errors",),
    "secagg": ("errors", "records", "strictjson"),
    "dp": ("errors", "privacy", "strategies", "weights"),
    "transports": ("errors", "federation", "records", "strictjson", "transports"),
    "weights": ("errors", "header", "records"),
    "aggregation": (
        "division",
        "errors",
        "federation",
        "header",
        "heap",
        "records",
        "share",
        "soundness",
        "strategies",
        "weights",
    ),
    "staleness": ("errors", "federation", "strategies"),
    "soundness": ("errors", "header", "weights"),
    "journal": ("errors", "eventlines", "events"),
    "clock": (),
    "lease": ("errors",),
    "rundir": ("durable", "errors", "lease", "records"),
    "durable": ("records",),
    "heap": (),
    "header": ("errors", "strictjson"),
}
"""What of ours other parts may see; a part is a module or a package right below `fedctl`."""

FORBIDDEN = {
    "coordinator": ("operations", "cli", "views", "topology"),
    "jobs": ("coordinator", "operations", "cli", "views", "topology", "strategies", "rounds"),
    "hosts": ("coordinator", "operations", "cli", "views", "topology", "strategies", "rounds", "journal", "jobs"),
    "connection": ("coordinator", "operations", "cli", "views", "topology", "strategies", "hosts", "jobs"),
    "bundle": ("coordinator", "operations", "cli", "views", "topology", "strategies", "hosts", "jobs"),
    "rounds": ("coordinator", "operations", "cli", "views", "topology", "hosts", "jobs"),
    "operations": ("cli", "views"),
}
"""Arrows that would point up."""

DOORS = {
    "typer": ("fedctl.cli", "fedctl.verbatim"),
    "rich": ("fedctl.views",),
    "pydantic": ("fedctl.topology",),
    "pydantic_core": ("fedctl.topology",),
    "yaml": ("fedctl.topology",),
    "paramiko": ("fedctl.transports.ssh",),
    "pytorch_lightning": ("fedctl.node.trainers",),
    "lightning": ("fedctl.node.trainers",),
    "torch": (
        "fedctl.weights",
        "fedctl.soundness",
        "fedctl.strategies",
        "fedctl.codecs",
        "fedctl.dp",
        "fedctl.masked",
        "fedctl.aggregation",
        "fedctl.node",
    ),
    "numpy": (
        "fedctl.strategies",
        "fedctl.codecs",
        "fedctl.dp",
        "fedctl.secagg",
        "fedctl.masked",
        "fedctl.weights",
        "fedctl.partition",
        "fedctl.node",
    ),
    "safetensors": ("fedctl.weights", "fedctl.node"),
    "opacus": ("fedctl.dp", "fedctl.node.trainers"),
    "cryptography": ("fedctl.dp", "fedctl.secagg"),
    "pathspec": ("fedctl.bundle",),
    "zstandard": ("fedctl.codecs.zstd",),
    "sklearn": (),
}
"""Where each library may be imported."""


def test_there_is_a_package_to_look_at():
    assert len(MODULES) > 40
    assert set(PURE) | set(ALLOWED) | set(FORBIDDEN) <= {part_of(module) for module in MODULES}


# Who imports whom


@every_module
def test_arrows_point_down(module):
    part = part_of(module)
    seen = {part_of(name) for name in imports(module) if name.startswith("fedctl.")} - {part}
    allowed = PURE.get(part, ALLOWED.get(part))
    if allowed is not None:
        assert seen <= set(allowed), f"{module} may see only {', '.join(allowed) or 'the standard library'}"
    assert not seen & set(FORBIDDEN.get(part, ()))


@pytest.mark.parametrize("part", PURE)
def test_pure_modules_import_the_standard_library_and_each_other(part):
    for name in imports(f"fedctl.{part}"):
        assert name.startswith("fedctl.") or name.split(".")[0] in sys.stdlib_module_names
        assert name.split(".")[0] not in {"os", "pathlib", "time", "socket", "subprocess", "threading"} or (
            (part, name) == ("federation", "pathlib")
        ), "a pure module asks nothing of the world"


@every_module
def test_one_library_one_door(module):
    for name in imports(module):
        library = name.split(".")[0]
        if library in DOORS:
            assert any(module == door or module.startswith(f"{door}.") for door in DOORS[library]), f"{library} there"
        else:
            assert library == "fedctl" or library in sys.stdlib_module_names, f"{library} has no door"


def test_no_two_modules_need_each_other():
    """Imports at the top of modules make no circle."""
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for name in sorted(imports(module, lazy=False) & MODULES.keys()):
                visit(name, (*above, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_the_agent_is_one_file_of_the_standard_library():
    assert {name.split(".")[0] for name in imports("fedctl.node.agent")} <= sys.stdlib_module_names


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("fedctl.node.owner")])
def test_the_owners_part_is_the_standard_library_and_the_agent(module):
    """An enrolled node has nothing else of fedctl, and perhaps an old Python."""
    ast.parse(MODULES[module].read_text(), feature_version=(3, 8))
    for name in imports(module):
        is_there = name in ("fedctl", "fedctl.node.agent") or name.startswith("fedctl.node.owner")
        assert is_there or name.split(".")[0] in sys.stdlib_module_names, name


def test_the_builder_of_environments_is_one_file_of_the_standard_library():
    assert {name.split(".")[0] for name in imports("fedctl.node.environment")} <= sys.stdlib_module_names


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("fedctl.node.owner")])
def test_the_owners_part_needs_the_standard_library_and_the_agent(module):
    ast.parse(MODULES[module].read_text(), feature_version=(3, 8))
    ours = {name for name in imports(module) if name.split(".")[0] not in sys.stdlib_module_names}
    assert all(name in ("fedctl", "fedctl.node.agent") or name.startswith("fedctl.node.owner") for name in ours), ours


# What the fast commands do not load


@pytest.fixture
def run_folder(tmp_path):
    run = rundir.create(tmp_path, "toy", configuration="", bundle=b"", facts={"federation": "digits"})
    run.journal.write_text("".join(dump(event) + "\n" for event in mid_round().events))
    return tmp_path


# Typer itself loads pydantic once a command has options to read; that we ask for none of it shows in the imports of the
# modules that `status` needs.
HEAVY = {"torch", "paramiko", "numpy", "pytorch_lightning", "lightning", "safetensors"}


def loaded_by(code: str, folder: Path) -> set[str]:
    """The top-level packages that a fresh interpreter has after the code."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
    script += "import json; print(); print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def command(*argv: str) -> str:
    return f"import fedctl.cli; sys.argv = {['fedctl', *argv]!r}; fedctl.cli.main()"


@pytest.mark.parametrize(
    ("code", "kept_out"),
    [
        ("import fedctl", {*HEAVY, "pydantic", "yaml", "typer", "rich"}),
        ("import fedctl.cli", {*HEAVY, "pydantic", "yaml"}),
        (command("--help"), {*HEAVY, "pydantic", "yaml"}),
        (command("--version"), {*HEAVY, "pydantic", "yaml"}),
        (command("status"), {*HEAVY, "yaml"}),
        (command("status", "--json"), {*HEAVY, "yaml"}),
        ("import fedctl.operations.status, fedctl.views.results", {*HEAVY, "pydantic", "yaml"}),
        (command("init", "--list"), HEAVY),
        (command("init", "demo"), HEAVY),
        ("import fedctl.plan, fedctl.report", {*HEAVY, "pydantic", "yaml", "rich"}),
        ("import fedctl.views.live, fedctl.views.results", {*HEAVY, "pydantic", "yaml"}),
        ("import fedctl.operations.launch, fedctl.operations.runs, fedctl.operations.status", HEAVY),
        (
            (
                "import fedctl.operations.launch; from fedctl.strategies import STRATEGIES, build; "
                "from fedctl.federation import Named; [build(Named(name=name)) for name in STRATEGIES]"
            ),
            HEAVY,
        ),
        ("from fedctl.node.rules import RULES, kind_of; [kind_of(name) for name in RULES]", HEAVY),
    ],
)
def test_what_is_not_needed_is_not_loaded(code, kept_out, run_folder):
    assert not loaded_by(code, run_folder) & kept_out


# Habits


@every_module
def test_a_file_says_what_it_is_for(module):
    assert ast.get_docstring(tree(module)), f"{module} has no docstring"


@every_module
def test_a_file_past_300_lines_is_two(module):
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= MOST_LINES or module in LONG, f"{module} has {lines} lines"


@every_module
def test_only_views_print(module):
    if part_of(module) != "views":
        calls = [node for node in ast.walk(tree(module)) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


@every_module
def test_no_state_lives_in_a_module(module):
    """A table at the top of a module is never written to, and no function rebinds a module's name."""
    tables = {name for name, value in top_level(module) if isinstance(value, MUTABLE) or _makes_table(value)}
    for node in ast.walk(tree(module)):
        assert not isinstance(node, ast.Global), f"{module}:{node.lineno}: global"
        written = _written(node)
        assert written not in tables, f"{module}:{node.lineno}: writes to {written}"


def test_the_tree_of_errors_is_as_it_is_drawn():
    """Each class stands in the docstring below its parent, with its exit code where that is its own."""
    drawn: dict[str, tuple[str, str]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        before, _, rest = line.partition("── ")
        name, _, about = (rest or line).strip().partition(" ")
        if not isinstance(getattr(errors, name, None), type):
            continue
        depth = 1 + len(before) // 4 if rest else 0
        above[depth:] = [name]
        drawn[name] = (above[depth - 1] if depth else "Exception", about.split()[0])
    kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    classes = {name: kind for name, kind in kinds.items() if issubclass(kind, Exception)}
    assert drawn.keys() == classes.keys()
    for name, (parent, code) in drawn.items():
        assert classes[name].__base__.__name__ == parent
        assert (str(classes[name].exit_code) == code) == ("exit_code" in vars(classes[name]))
        assert classes[name].__doc__


# Reading


MUTABLE = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)
WRITERS = {"append", "add", "update", "setdefault", "pop", "popitem", "clear", "extend", "insert", "remove", "discard"}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def part_of(module: str) -> str:
    """`fedctl.views.live` is of `views`."""
    return ([*module.split("."), "fedctl"])[1]


@cache
def imports(module: str, *, lazy: bool = True) -> frozenset[str]:
    """All that a module imports, inside functions too unless not `lazy`; not what only the type checker sees."""
    return frozenset(_imports(tree(module), lazy=lazy))


def _imports(node: ast.AST, *, lazy: bool) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(level=level, module=name, names=names):
                assert level == 0, "imports are absolute"
                yield from (_full(str(name), alias.name) for alias in names)
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=rest):
                for other in rest:
                    yield from _imports(other, lazy=lazy)
            case ast.FunctionDef() | ast.AsyncFunctionDef() if not lazy:
                pass
            case _:
                yield from _imports(child, lazy=lazy)


def _full(module: str, name: str) -> str:
    """`from fedctl import topology` imports `fedctl.topology`; `from fedctl.plan import plan` imports `fedctl.plan`."""
    return f"{module}.{name}" if f"{module}.{name}" in MODULES else module


def top_level(module: str) -> Iterator[tuple[str, ast.expr]]:
    for node in tree(module).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value
            case _:
                pass


def _makes_table(value: ast.expr) -> bool:
    called = value.func if isinstance(value, ast.Call) else None
    return isinstance(called, ast.Name) and called.id in {"dict", "list", "set", "defaultdict", "Counter", "deque"}


def _written(node: ast.AST) -> str | None:
    """The name that is written to in `name[...] = ...`, `del name[...]`, `name += ...` or `name.append(...)`."""
    match node:
        case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
            return name
        case ast.AugAssign(target=ast.Name(id=name)):
            return name
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=attr)) if attr in WRITERS:
            return name
        case _:
            return None


def test_this_reader_sees_what_it_should():
    source: Mapping[str, str | None] = {
        "TABLE['a'] = 1": "TABLE",
        "TABLE.append(3)": "TABLE",
        "del TABLE[0]": "TABLE",
        "x = TABLE['a']": None,
        "TABLE.get('a')": None,
    }
    for line, name in source.items():
        found = {_written(node) for node in ast.walk(ast.parse(line))} - {None}
        assert found == ({name} if name else set()), line
    lazy = ast.parse("import os\ndef f():\n    import torch\nif TYPE_CHECKING:\n    import rich")
    assert set(_imports(lazy, lazy=True)) == {"os", "torch"}
    assert set(_imports(lazy, lazy=False)) == {"os"}
