"""`fedctl check` on this machine: what the agent looks at for it, and what comes of a whole check."""

import os
import sys

import pytest

from fedctl import bundle, durable, transfer
from fedctl.connection import Connection
from fedctl.errors import NodeError
from fedctl.federation import Federation, Node, TaskSpec
from fedctl.operations import check
from fedctl.operations.check import Checked
from fedctl.operations.findings import Finding
from fedctl.transports.local import LocalTransport
from fedctl.views import checking


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def agent(home):
    connection = Connection.open(LocalTransport(str(home)), sys.executable)
    yield connection
    connection.close()


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a program first in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def write(name, *lines):
        path = folder / name
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(0o755)
        return str(path)

    return write


# What the agent looks at


def test_the_agent_says_who_it_is(agent):
    hello = agent.ask("hello")
    assert hello["forced"] is False
    assert hello["user"]
    assert 0 < hello["memory_available"] <= hello["memory"]


def test_a_path_is_looked_at_and_nothing_more(agent, tmp_path):
    (tmp_path / "there").write_text("secret")
    answer = agent.ask("look", paths=[str(tmp_path / "there"), str(tmp_path / "gone"), "~"])
    assert answer.pop("re")
    assert answer == {
        "found": [
            {"exists": True, "readable": True},
            {"exists": False, "readable": False},
            {"exists": True, "readable": True},
        ]
    }


def test_gpus_are_those_of_nvidia_smi(program, agent_now):
    program("nvidia-smi", 'echo "$@" > "$0.asked"', "echo 'NVIDIA A100-SXM4, 80GB, 81920, 550.54.14'")
    assert agent_now().ask("accelerators", wanted=False)["gpus"] == [
        {"name": "NVIDIA A100-SXM4, 80GB", "memory": "81920", "driver": "550.54.14"}
    ]


def test_an_nvidia_smi_that_fails_is_told(program, agent_now):
    program("nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'", "exit 18")
    answer = agent_now().ask("accelerators", wanted=False)
    assert answer["gpus"] == []
    assert "version mismatch" in answer["trouble"]


def test_torch_is_asked_where_there_is_a_gpu_or_one_is_wanted(program, agent_now):
    python = program("python", """echo '{"gpus": ["A100"], "mps": false}'""")
    program("nvidia-smi", "exit 0")
    assert "torch" not in agent_now().ask("accelerators", python=python, wanted=False)
    assert agent_now().ask("accelerators", python=python, wanted=True)["torch"] == {"gpus": ["A100"], "mps": False}
    program("nvidia-smi", "echo 'A100, 81920, 550'")
    assert agent_now().ask("accelerators", python=python, wanted=False)["torch"]["gpus"] == ["A100"]


@pytest.fixture
def agent_now(home):
    """An agent that is started when it is asked for, with the environment as it is then."""
    opened = []

    def start():
        opened.append(Connection.open(LocalTransport(str(home)), sys.executable))
        return opened[-1]

    yield start
    for connection in opened:
        connection.close()


# The import of the user's code


@pytest.fixture
def bring(tmp_path, home):
    """Unpack a federation's bundle in the agent's home, as `provision` does; returns its digest."""

    def bring(agent, **files):
        folder = tmp_path / "project"
        folder.mkdir()
        for name, text in files.items():
            (folder / f"{name}.py").write_text(text)
        task = TaskSpec(model="model.py:Net", data="data.py:Data")
        content = bundle.pack(Federation(name="toy", folder=folder, task=task, nodes=(Node(name="bob"),)))
        path = tmp_path / "bundle.tar"
        path.write_bytes(content)
        blob = durable.digest(path)
        transfer.put(agent, blob, path)
        agent.ask("unpack", digest=blob.digest)
        return blob.digest

    return bring


@pytest.mark.parametrize(
    ("model", "failure"),
    [
        ("print('hello')", None),
        ("import nosuch", "model.py:1: ModuleNotFoundError: No module named 'nosuch'"),
        ("x = (", "model.py:1: SyntaxError: '(' was never closed (model.py, line 1)"),
        ("import sys\nsys.exit('no')", "model.py:2: SystemExit: no"),
    ],
)
def test_code_is_imported_by_the_python_of_the_tasks(agent, bring, model, failure):
    digest = bring(agent, model=model, data="")
    answer = agent.ask("trial", python=sys.executable, bundle=digest, modules=["model", "data"])
    assert (answer["present"], answer["failure"]) == (True, failure)


def test_code_that_kills_its_process_is_told(agent, bring):
    digest = bring(agent, model="import os\nos.abort()", data="")
    answer = agent.ask("trial", python=sys.executable, bundle=digest, modules=["model"])
    assert "ended with status" in answer["failure"]


def test_nothing_is_tried_where_the_code_or_a_python_lacks(agent, bring):
    assert agent.ask("trial", python=sys.executable, bundle="0" * 64, modules=["model"])["present"] is False
    assert agent.ask("trial", bundle=bring(agent, model="", data=""), modules=["model"])["present"] is False


def test_a_trial_leaves_nothing(agent, bring, home):
    digest = bring(agent, model="x = 1", data="")
    before = sorted(home.rglob("*"))
    agent.ask("trial", python=sys.executable, bundle=digest, modules=["model", "data"])
    assert sorted(home.rglob("*")) == before


def test_a_bundle_is_named_by_its_digest_alone(agent):
    with pytest.raises(NodeError, match="not a digest"):
        agent.ask("trial", python=sys.executable, bundle="../../etc", modules=[])


# A whole check

FED_YAML = """\
name: toy
task:
  model: model.py:Net
  data: data.py:Data
  data_args: {site: 0, files: [./here.csv], url: "https://example.org/a", label: a/b}
nodes:
  - {name: alice, host: local}
  - {name: bob, host: local, data: {root: /nosuch/place}}
  - {name: carol, host: local, python: /nosuch/python}
"""
MODEL = """\
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
    def __init__(self, **options):
        super().__init__()
    def train_dataloader(self):
        return []
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    for name, text in {"fed.yaml": FED_YAML, "model.py": MODEL, "data.py": DATA, "here.csv": "1"}.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def checked(folder):
    """A check of three nodes, and what was told of how far it was."""
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDCTL_HOME", str(folder / "home"))
        return check.check(folder / "fed.yaml", told=lambda *progress: told.append(progress)), told


def failed(checked, name):
    return [one.name for one in checked.nodes[name] if not one.passed]


def test_each_node_has_its_findings(checked):
    found, _ = checked
    assert found.code.passed
    assert list(found.nodes) == ["alice", "bob", "carol"]
    assert failed(found, "alice") == []
    assert failed(found, "bob") == ["data"]
    assert failed(found, "carol") == ["reach"]
    assert "/nosuch/python" in found.nodes["carol"][0].value
    assert not found.passed


def test_paths_are_told_from_other_texts(checked):
    data = {name: one.value for name, row in checked[0].nodes.items() for one in row if one.name == "data"}
    assert data == {"alice": "./here.csv", "bob": "/nosuch/place is not there"}


def test_a_check_tells_how_far_it_is(checked):
    _, told = checked
    assert told[0] == (0, 3)
    assert told[-1] == (3, 3)
    assert told == sorted(told)


def test_a_check_sends_no_code(checked, folder):
    assert not (folder / "home" / "bundle").exists()
    assert not (folder / "home" / "blobs").exists()
    assert not (folder / "home" / "runs").exists()


# What is shown


@pytest.fixture
def shown(capsys, monkeypatch):
    def show(found, width=80):
        monkeypatch.setenv("COLUMNS", str(width))
        checking.checked(found, as_json=False)
        return capsys.readouterr()

    return show


def test_a_line_a_node_and_each_remedy(checked, shown):
    out, err = shown(checked[0])
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert lines["NODE"][0] == "REACH"
    assert lines["alice"][0] == "ok"
    assert lines["bob"][-2] == "failed"
    assert lines["carol"] == ["failed"]
    assert "bob: data: /nosuch/place is not there\n  correct `data:` of this node" in err
    assert "2 of 3 nodes cannot train yet" in err


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_hundred_nodes_take_a_few_lines(shown, width):
    good = tuple(Finding(name=name, passed=True, value="") for name in ("network", "python", "disk", "import"))
    bad = (Finding(name="network", passed=False, value="no answer", remedy="switch it on"),)
    nodes = {f"hospital-{i:03}": bad if i in (7, 8) else good for i in range(100)}
    out, err = shown(Checked(federation="toy", code=Finding(name="code", passed=True, value=""), nodes=nodes), width)
    assert len(out.splitlines()) < 10
    assert max(map(len, out.splitlines())) <= width
    assert "hospital-000" in out
    assert err.count("hospital-007, hospital-008: network: no answer\n  switch it on\n") == 1


def test_nodes_are_not_called_ready_without_a_word_of_code_that_failed(shown):
    code = Finding(name="code", passed=False, value="model.py:3: NameError: nn", remedy="mend it")
    good = (Finding(name="network", passed=True, value=""),)
    _, err = shown(Checked(federation="toy", code=code, nodes={"alice": good, "bob": good}))
    assert err.splitlines()[-1] == "2 nodes ready; your code cannot be used yet"


def test_a_node_cannot_drive_the_terminal(shown):
    bad = (Finding(name="agent", passed=False, value="\x1b[2Jfine\nalice: all is well", remedy="x"),)
    _, err = shown(Checked(federation="toy", code=Finding(name="code", passed=True, value=""), nodes={"bob": bad}))
    assert "\x1b" not in err
    assert "\nalice" not in err
