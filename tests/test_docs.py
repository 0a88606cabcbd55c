"""What the pages say is so: their commands parse, their sessions run, their links lead somewhere.

A `console` block is a session and is run: lines that begin with `$ ` are typed, the lines below them must be seen in
this order. Digits match any digits, `…` anything, and what stands around a line or between two is free. `^C` presses
Ctrl-C once the lines above it were seen. A command fails exactly where the page shows `error:`. A `python` block that
begins with `# name.py` is saved under that name.
"""

import argparse
import ast
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer.main

from fedctl import errors
from fedctl.cli import app
from fedctl.node.owner.cli import parser
from fedctl.operations.launch import Interrupted
from fedctl.transports import sshoptions

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEMPLATES = sorted((ROOT / "templates").glob("*/README.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CLI = typer.main.get_command(app)
PATIENCE_S = 240


def names(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def blocks(text: str, *languages: str) -> Iterator[tuple[str, str]]:
    for language, body in BLOCK.findall(text):
        if not languages or language in languages:
            yield language, body


def prose(text: str) -> str:
    return BLOCK.sub("", text)


def commands(text: str) -> Iterator[list[str]]:
    """Every `fedctl ...` of the code blocks, as words."""
    for _, body in blocks(text, "sh", "console", ""):
        for line in body.splitlines():
            if line.removeprefix("$ ").startswith("fedctl "):
                words = shlex.split(line.removeprefix("$ "), comments=True)
                ends = [index for index, word in enumerate(words) if word in {"&&", "|", ">"}]
                yield words[1 : min(ends, default=len(words))]


@pytest.mark.parametrize("page", [*PAGES, *TEMPLATES], ids=names([*PAGES, *TEMPLATES]))
def test_every_command_parses(page):
    for words in commands(page.read_text()):
        assert words[0] in CLI.commands, words
        CLI.commands[words[0]].make_context(
            words[0], words[1:], parent=typer.main.get_command(app).make_context("fedctl", ["status"])
        )


@pytest.mark.parametrize("page", [*PAGES, *TEMPLATES], ids=names([*PAGES, *TEMPLATES]))
def test_commands_and_options_named_in_prose_exist(page):
    for words in re.findall(r"`fedctl ([a-z][^`]*)`", prose(page.read_text())):
        name = words.split()[0]
        assert name in CLI.commands, words
        known = of_owners(words) if name == "node" else options_of(name)
        assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", words)) <= known | {"--help"}, words


def options_of(command: str) -> set[str]:
    return {option for parameter in CLI.commands[command].params for option in parameter.opts}


def of_owners(words: str) -> set[str]:
    """The options of a command for owners, which are argparse's, since it runs without Typer too."""
    (verbs,) = (action for action in parser("fedctl node")._actions if isinstance(action, argparse._SubParsersAction))
    verb = next(iter(words.split()[1:]), None)
    assert verb is None or verb in verbs.choices, words
    return set() if verb is None else set(verbs.choices[verb]._option_string_actions)


def test_the_readme_has_every_command():
    text = (ROOT / "README.md").read_text()
    assert [name for name in CLI.commands if f"| `fedctl {name}" not in text] == []


def test_every_error_has_its_heading_and_exit_code():
    text = (ROOT / "docs" / "errors.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    kinds = {
        kind.__name__: kind
        for kind in (*vars(errors).values(), Interrupted)
        if inspect.isclass(kind) and issubclass(kind, errors.FedctlError)
    }
    assert set(sections) == set(kinds)
    for name, kind in kinds.items():
        assert f"Exit code {kind.exit_code}." in sections[name], name


@pytest.mark.parametrize("page", [*PAGES, *TEMPLATES], ids=names([*PAGES, *TEMPLATES]))
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text()), target


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_code_that_is_named_exists(page):
    """`fedctl/plan.py:plan` names a definition of that file, `fedctl/state.py:RunState.is_over` one inside a class."""
    for path, symbol in re.findall(r"`((?:fedctl|tests|docs)/[\w/.]+\.py)(?::([\w.]+))?`", prose(page.read_text())):
        assert (ROOT / path).is_file(), path
        body = ast.parse((ROOT / path).read_text()).body
        for part in filter(None, symbol.split(".")):
            found = [node for node in body if part in defined(node)]
            assert found, f"{path}:{symbol}"
            body = getattr(found[0], "body", [])


def defined(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case _:
            return set()


def test_every_option_of_ssh_is_where_it_belongs():
    """docs/ssh.md has the three tables of `fedctl/transports/sshoptions.py`."""
    text = section("docs/ssh.md", "## Which options of ~/.ssh/config count").split("**Honoured:**")[1]
    honoured, _, rest = text.partition("**Without effect**")
    harmless, _, refused = rest.partition("**Refused by name**")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", refused, re.MULTILINE))
    assert re.findall(r"`(\w+)`", honoured) == sshoptions.HONOURED.split()
    assert re.findall(r"`([A-Z]\w+)`", harmless) == " ".join(sshoptions.HARMLESS.values()).split()
    assert rows == {name: hint for name, (_, hint) in {**sshoptions.REFUSED, **sshoptions.REFUSED_AT_NODES}.items()}


def test_the_messages_of_the_troubleshooting_are_those_of_fedctl():
    trees = [ast.parse(path.read_text()) for path in sorted((ROOT / "fedctl").rglob("*.py"))]
    texts = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    said = "\n".join(text for text in texts if isinstance(text, str))
    messages = re.findall(r"^\| `(.+?)` \|", section("docs/ssh.md", "## Troubleshooting"), re.MULTILINE)
    assert len(messages) > 20
    for message in messages:
        for part in message.split("…"):
            assert part.strip() in said, message


def test_the_example_is_pointed_at():
    for page in ("README.md", "docs/fed-yaml.md"):
        assert "fed.yaml.example" in (ROOT / page).read_text(), page


@dataclass
class Step:
    """One command of a session, what must be seen, and whether Ctrl-C follows it."""

    command: str
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    interrupts: bool = False

    @property
    def expected(self) -> list[str]:
        return [*self.before, *self.after]

    @property
    def fails(self) -> bool:
        return any(line.startswith("error:") for line in self.expected)


def steps(body: str) -> list[Step]:
    found: list[Step] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            found.append(Step(line.removeprefix("$ ")))
        elif line == "^C":
            found[-1].interrupts = True
        elif line.strip():
            (found[-1].after if found[-1].interrupts else found[-1].before).append(line)
    return found


def pattern(line: str) -> re.Pattern[str]:
    """The line with free numbers, free blanks and `…` for anything."""
    words = [re.sub(r"\d+", lambda _: r"\d+", re.escape(word)).replace("…", ".*") for word in line.split()]
    return re.compile(r"\s+".join(words))


def missing(lines: list[str], output: str) -> str | None:
    """The first of the lines that is not seen, in this order."""
    at = 0
    for line in lines:
        match = pattern(line).search(output, at)
        if match is None:
            return line
        at = match.end()
    return None


class Session:
    """A shell that remembers only its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {
            **os.environ,
            "PATH": path,
            "FEDCTL_HOME": str(folder / "home"),
            "COLUMNS": "200",
            "NO_COLOR": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
        }

    def follow(self, text: str) -> None:
        for language, body in blocks(text, "console", "python"):
            if language == "console":
                for step in steps(body):
                    self.take(step)
            elif name := re.match(r"# (\w+\.py)\n", body):
                (self.folder / name[1]).write_text(body)

    def take(self, step: Step) -> None:
        if step.command.startswith("cd "):
            self.folder /= step.command.removeprefix("cd ")
            return
        code, output = self.run(step)
        said = f"$ {step.command}\n{output}"
        assert missing(step.expected, output) is None, f"not seen: {missing(step.expected, output)}\n{said}"
        assert code == 130 if step.interrupts else bool(code) == step.fails, f"exit code {code}\n{said}"

    def run(self, step: Step) -> tuple[int, str]:
        pieces: list[str] = []
        with subprocess.Popen(
            ["bash", "-c", f"exec {step.command}"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            reader = threading.Thread(target=lambda: pieces.extend(iter(process.stdout.readline, "")))
            reader.start()
            deadline = time.monotonic() + PATIENCE_S
            interrupts = step.interrupts
            while process.poll() is None:
                if interrupts and missing(step.before, "".join(pieces)) is None:
                    interrupts = False
                    process.send_signal(signal.SIGINT)
                if time.monotonic() > deadline:
                    process.kill()
                time.sleep(0.02)
            reader.join()
            return process.returncode, "".join(pieces)

    def tidy(self) -> None:
        """Workers outlive whoever started them; a page that ends in a failure leaves some behind."""
        for run in self.folder.glob("runs/*/run.json"):
            self.run(Step(f"fedctl stop {run.parent.name}"))


def section(page: str, heading: str) -> str:
    """One section of a page, up to the next of its level."""
    return re.split(rf"^{heading}\n", (ROOT / page).read_text(), flags=re.MULTILINE)[1].split("\n## ")[0]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(section("README.md", "## Five minutes, with your own code"), id="README"),
        pytest.param((ROOT / "docs" / "tutorial.md").read_text(), id="tutorial"),
        pytest.param(section("docs/algorithms.md", "## Your own"), id="algorithms"),
    ],
)
def test_the_sessions_run_as_they_are_shown(text, tmp_path):
    session = Session(tmp_path)
    try:
        session.follow(text)
    finally:
        session.tidy()
