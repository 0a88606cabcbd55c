"""`fedctl check` over real servers: what keeps a node away, each with its remedy, and host keys that are accepted."""

import contextlib
import json
import os
import pty
import socket
import subprocess
import sys
import time

import pytest

from fedctl.operations.check import check
from tests.bed import keys

FED_YAML = """\
name: toy
rounds: 1
task:
  model: model.py:Net
  data: data.py:Data
"""
MODEL = """\
import os
if "BROKEN" in os.environ:
    raise OSError("no licence")
import pytorch_lightning as pl
from torch import nn
class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
"""
DATA = """\
import pytorch_lightning as pl
class Data(pl.LightningDataModule):
    def __init__(self, root="", label=""):
        super().__init__()
    def train_dataloader(self):
        return []
"""
REACHED = ["name", "network", "host key", "login", "agent", "forced command"]


@pytest.fixture(scope="module")
def fed(bed, tmp_path_factory):
    """Make a folder with a federation of these nodes: names, or names with the rest of the entry."""

    def make(*nodes, **entries):
        folder = tmp_path_factory.mktemp("fed")
        every = {**dict.fromkeys(nodes, ""), **entries}
        lines = [
            f"  - {{name: {name}, host: {name}, python: {sys.executable}{rest}}}\n" for name, rest in every.items()
        ]
        (folder / "fed.yaml").write_text(FED_YAML + "nodes:\n" + "".join(lines))
        (folder / "model.py").write_text(MODEL)
        (folder / "data.py").write_text(DATA)
        return folder

    return make


@pytest.fixture(scope="module")
def fedctl(bed):
    """A command, as somebody in the bed's home types it."""

    def run(folder, *words, **more):
        return subprocess.run(
            [sys.executable, "-m", "fedctl", *words],
            cwd=folder,
            env={**bed.environment, "NO_COLOR": "1", "COLUMNS": "80"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **{"stdin": subprocess.DEVNULL, **more},
        )

    return run


@pytest.fixture(scope="module")
def everything(bed, fed, fedctl):
    """One check of a federation in which most of what can be wrong is; two of its nodes were provisioned before."""
    bed.add("check-good")
    bed.add("check-noisy", noise="echo hello from my .bashrc\n")
    bed.add("check-broken", environment={"BROKEN": "1"})
    bed.add("check-forced", config=['ForceCommand sh -c "$SSH_ORIGINAL_COMMAND"'])
    other = bed.add("check-other")
    changed = bed.folder / "changed"
    changed.write_text(f"[127.0.0.1]:{other.port} {keys.public(bed.nodes['check-good'].host_keys[0])}\n")
    bed.alias("check-changed", other, UserKnownHostsFile=changed)
    bed.alias("check-unknown", other, UserKnownHostsFile="/dev/null")
    bed.alias("check-user", other, User="nosuch")
    bed.alias("check-closed", other, Port=1)
    bed.alias("check-nowhere", other, HostName="nowhere.invalid")
    names = ("good", "noisy", "broken", "forced", "changed", "unknown", "user", "closed", "nowhere")
    folder = fed(*(f"check-{name}" for name in names), **{"check-other": ", data: {root: /srv/nothing, label: a/b}"})
    provisioned = fedctl(fed("check-good", "check-broken"), "provision")  # of the same code, so it is there
    assert provisioned.returncode == 0, provisioned.stderr
    done = fedctl(folder, "check", "--json")
    assert done.returncode == 4, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def found(everything):
    """The findings of a node by name."""
    return lambda name: {one["name"]: one for one in everything["nodes"][f"check-{name}"]}


def test_a_node_that_is_ready_passes_everything(found):
    findings = found("good")
    assert all(one["passed"] for one in findings.values()), findings
    assert list(findings) == [
        *REACHED,
        *("python", "packages", "disk", "memory", "accelerator", "clock", "data", "import"),
    ]
    assert findings["forced command"]["value"] == "no"
    assert findings["import"]["value"] == "your code can be imported"
    assert findings["accelerator"]["mark"] == "cpu"


@pytest.mark.parametrize(
    ("name", "stage", "said", "remedy"),
    [
        ("nowhere", "name", "nowhere.invalid", "HostName"),
        ("closed", "network", "port 1", "ssh"),
        ("unknown", "host key", "SHA256:", "fedctl check --accept-new"),
        ("changed", "host key", "is not the one that is known", "ssh-keygen -R"),
        ("user", "login", "nosuch", "ssh-copy-id"),
    ],
)
def test_the_first_thing_that_keeps_a_node_away_ends_its_row(found, name, stage, said, remedy):
    findings = found(name)
    assert list(findings) == REACHED[: REACHED.index(stage) + 1]
    assert [one["passed"] for one in findings.values()] == [True] * (len(findings) - 1) + [False]
    assert said in findings[stage]["value"]
    assert remedy in findings[stage]["remedy"]


def test_a_shell_that_prints_is_passed_over_and_noted(found):
    findings = found("noisy")
    assert all(one["passed"] for one in findings.values()), findings
    assert "hello from my .bashrc" in findings["agent"]["note"]


def test_code_that_has_not_come_yet_is_no_failure(found):
    finding = found("noisy")["import"]
    assert finding["passed"]
    assert "fedctl provision" in finding["note"]


def test_a_forced_command_is_told(found):
    assert found("forced")["forced command"]["value"] == "yes, to the agent"


def test_code_that_cannot_be_imported_there_is_told_by_its_line(found):
    finding = found("broken")["import"]
    assert not finding["passed"]
    assert finding["value"] == "model.py:3: OSError: no licence"
    assert "requirements.txt" in finding["remedy"]


def test_a_path_in_the_data_of_a_node_is_looked_up_there(found):
    findings = found("other")
    assert [name for name, one in findings.items() if not one["passed"]] == ["data"]
    assert findings["data"]["value"] == "/srv/nothing is not there"


@pytest.fixture
def deaf_port():
    """A port of all loopback addresses that answers nobody, as a firewall that drops packets does."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("0.0.0.0", 0), backlog=0))
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", listener.getsockname()[1]))
        yield listener.getsockname()[1]


def test_a_hundred_nodes_that_do_not_answer_cost_one_timeout(bed, fed, fedctl, deaf_port):
    timeout_s = 3
    server = bed.nodes.get("check-good") or bed.add("check-good")
    names = [f"deaf-{i}" for i in range(1, 101)]
    for i, name in enumerate(names, start=1):
        bed.alias(name, server, HostName=f"127.0.77.{i}", Port=deaf_port, ConnectTimeout=timeout_s)
    folder = fed(*names)
    began = time.monotonic()
    done = fedctl(folder, "check", "--json")
    seconds = time.monotonic() - began
    assert done.returncode == 4
    ends = [findings[-1] for findings in json.loads(done.stdout)["nodes"].values()]
    assert {(one["name"], one["passed"]) for one in ends} == {("network", False)}
    assert len(ends) == 100
    assert seconds < 15 * timeout_s


# --accept-new


@pytest.fixture
def stranger(bed, fed):
    """A node whose key nobody knows: its folder and its server."""
    server = bed.nodes.get("check-stranger") or bed.add("check-stranger")
    return fed(bed.alias("stranger", server, UserKnownHostsFile="/dev/null")), server


def answered(fedctl, folder, answer):
    """`check --accept-new` with a terminal on which somebody types."""
    mine, theirs = pty.openpty()
    os.write(mine, answer.encode())
    try:
        return fedctl(folder, "check", "--accept-new", stdin=theirs)
    finally:
        os.close(mine)
        os.close(theirs)


def test_a_new_key_is_shown_and_kept_when_somebody_says_yes(fedctl, stranger):
    folder, server = stranger
    done = answered(fedctl, folder, "y\n")
    assert done.returncode == 0, done.stderr
    assert keys.fingerprint(server.host_keys[0]) in done.stderr
    assert "ssh-keygen -lf" in done.stderr
    assert "accept this key? [y/N]" in done.stderr
    assert (folder / "known_hosts").read_text() == server.known_hosts()


def test_a_new_key_is_not_kept_when_nobody_says_yes(fedctl, stranger):
    folder, _ = stranger
    done = answered(fedctl, folder, "\n")
    assert done.returncode == 4
    assert not (folder / "known_hosts").exists()
    assert "stranger: host key: " in done.stderr


def test_without_a_terminal_a_new_key_takes_yes(fedctl, stranger):
    folder, server = stranger
    done = fedctl(folder, "check", "--accept-new")
    assert done.returncode == 2
    assert keys.fingerprint(server.host_keys[0]) in done.stderr
    assert "fedctl check --accept-new --yes" in done.stderr
    assert not (folder / "known_hosts").exists()


def test_keys_are_accepted_in_turns_through_a_bastion_and_a_changed_one_never(bed, fed, at_home):
    bastion, behind, moved = bed.add_all(["check-bastion", "check-behind", "check-moved"])
    for name, server in {"bastion": bastion, "behind": behind}.items():
        bed.alias(name, server, UserKnownHostsFile="/dev/null")
    old = bed.folder / "old"
    old.write_text(f"[127.0.0.1]:{moved.port} {keys.public(behind.host_keys[0])}\n")
    bed.alias("moved", moved, UserKnownHostsFile=old)
    folder = fed("moved", behind=", jump: bastion")
    at_home(bed)
    asked = []
    found = check(folder / "fed.yaml", ask=lambda unknown: asked.append(unknown) or True)
    assert [[one.key.name for one in turn] for turn in asked] == [
        [f"[127.0.0.1]:{bastion.port}"],
        [f"[127.0.0.1]:{behind.port}"],
    ]
    assert [one.nodes for turn in asked for one in turn] == [("behind",), ("behind",)]
    assert (folder / "known_hosts").read_text() == bastion.known_hosts() + behind.known_hosts()
    assert all(one.passed for one in found.nodes["behind"])
    assert found.nodes["moved"][-1].name == "host key"
    assert "is not the one that is known" in found.nodes["moved"][-1].value
