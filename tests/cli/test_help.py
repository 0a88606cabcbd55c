"""The help of every command, word for word. `UPDATE_GOLDENS=1 pytest tests/cli` writes them anew."""

import os
from pathlib import Path

import pytest

GOLDENS = Path(__file__).parent / "goldens"
COMMANDS = ["", "init", "check", "provision", "launch", "status", "logs", "audit", "stop", "clean", "aggregate", "node"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help(fedctl, command):
    said = fedctl(*command.split(), "--help")
    shown = "\n".join(line.rstrip() for line in said.out.splitlines()).strip() + "\n"
    golden = GOLDENS / f"{command or 'fedctl'}.txt"
    if os.environ.get("UPDATE_GOLDENS"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(shown)
    assert said.code == 0
    assert shown == golden.read_text()


def test_every_command_has_a_golden():
    from fedctl.cli import app

    assert sorted(command.callback.__name__ for command in app.registered_commands) == sorted(filter(None, COMMANDS))


def test_no_arguments_teach(fedctl):
    said = fedctl()
    assert "init" in said.out + said.err


def test_version(fedctl):
    from fedctl import __version__

    assert fedctl("--version").out == f"fedctl {__version__}\n"
