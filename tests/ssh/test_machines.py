"""Machines that say no: one sentence and a remedy each, from the command that people type."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.bed import LoopbackBed, why_not
from tests.ssh.conftest import SshPlace

SAID = {
    "no-python": ("agent", "there is no `/no/such/python` there", "name one with `python:`"),
    "bare": ("agent", "there is no `python3` there", "install Python 3.8 or newer there"),
    "forced": ("agent", "ran something else than fedctl's agent: closed for maintenance", "look for `ForceCommand`"),
    "shell-less": ("agent", "ran something else than fedctl's agent: no shell for you", "its login shell"),
    "no-root": ("login", "root@no-root: refused", "`PermitRootLogin no` never lets root in"),
    "passwords": ("login", "takes password, and no keys", "`PubkeyAuthentication yes`"),
    "no-sessions": ("agent", "no-sessions opens no session", "`MaxSessions 0`"),
    "inside": ("login", "the bastion bastion forbids forwarding to 127.0.0.1 port", "`AllowTcpForwarding yes`"),
    "read-only": ("agent", r"cannot keep its files there: .* \(.*/home/\.fedctl\)", "another folder with `home:`"),
    "full": ("agent", "cannot keep its files there: no space left on device", "make room there"),
    "cramped": ("disk", r"0\.0 GB free, 0\.\d GB needed", "name another place in `home:`"),
    **{
        f"old-{path.parts[-3]}": ("agent", rf"is Python {path.parts[-3]}, and fedctl needs 3\.8", "install a newer one")
        for path in Path.home().glob(".pyenv/versions/3.7.*/bin/python")
    },
    **{
        f"old-{path.parts[-3]}": ("python", f"{path.parts[-3]}, as given", "tasks need Python 3.10 or newer")
        for path in Path.home().glob(".pyenv/versions/3.8.*/bin/python")
    },
}
if why_not() is not None:  # what takes a file system of its own
    del SAID["full"], SAID["cramped"]
    if os.geteuid() == 0:
        del SAID["read-only"]


def on_a_file_system(bed: LoopbackBed, name: str, options: str) -> list[str]:
    """Words that start sshd where the node's home is a file system in memory, with these options of mount."""
    mount = f'mount -t tmpfs -o {options} none {bed.folder / name / "home"} && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", mount, "sh"]


def bring_up(bed: LoopbackBed, tools: Path) -> None:
    """The servers, each with what keeps it from being a node, and two that work with a limit."""
    for name in ("sh", "bash", "test"):
        if program := shutil.which(name):
            (tools / name).symlink_to(program)
    bed.add_all(["no-python", "inside", *(name for name in SAID if name.startswith("old-"))])
    bed.add("bare", environment={"PATH": str(tools)})
    bed.add("forced", config=["ForceCommand echo closed for maintenance"])
    bed.add("shell-less", noise="echo no shell for you; exit 1\n")
    bed.alias("no-root", bed.add("no-root", config=["PermitRootLogin no"]), User="root")
    bed.add("passwords", config=["PubkeyAuthentication no", "PasswordAuthentication yes"])
    bed.add("no-sessions", config=["MaxSessions 0"])
    bed.add("one-session", config=["MaxSessions 1"])
    bed.add("bastion", config=["AllowTcpForwarding no"])
    if why_not() is None:
        for name, options in {"read-only": "ro", "full": "size=16k", "cramped": "size=1m"}.items():
            bed.add(name, shell=on_a_file_system(bed, name, options))
    elif "read-only" in SAID:
        bed.add("read-only").home.chmod(0o500)


def entry(name: str) -> str:
    """A node of fed.yaml."""
    version = name.removeprefix("old-")
    old = Path.home() / ".pyenv" / "versions" / version / "bin" / "python"
    python = {"no-python": "/no/such/python", "bare": None}.get(name, sys.executable if version == name else old)
    fields = {"name": name.replace(".", "-"), "host": name, "python": python}
    fields |= {"jump": "bastion"} if name == "inside" else {}
    return "  - {" + ", ".join(f"{key}: {value}" for key, value in fields.items() if value) + "}\n"


@pytest.fixture(scope="module")
def checked(make_place, tmp_path_factory):
    """What `fedctl check` finds on each node."""
    tools = tmp_path_factory.mktemp("tools")
    with LoopbackBed(tmp_path_factory.mktemp("machines") / "bed") as bed:
        bring_up(bed, tools)
        place = SshPlace(**vars(make_place("blank")), bed=bed)
        file = place.folder / "fed.yaml"
        head = file.read_text().split("nodes:", 1)[0]
        file.write_text(f"{head}nodes:\n" + "".join(entry(name) for name in [*SAID, "one-session"]))
        found = place.json("check", code=4)
        assert place.left_on_nodes() == []
        yield found["nodes"]


@pytest.mark.parametrize("name", SAID)
def test_what_keeps_a_machine_from_working_is_a_sentence_with_a_remedy(checked, name):
    stage, said, remedy = SAID[name]
    first = next(one for one in checked[name.replace(".", "-")] if not one["passed"])
    assert first["name"] == stage
    assert re.search(said, first["value"]), first["value"]
    assert "\n" not in first["value"]
    assert remedy in first["remedy"]


def test_one_session_a_line_is_enough(checked):
    assert all(one["passed"] for one in checked["one-session"]), checked["one-session"]
