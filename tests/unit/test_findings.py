"""What a node's answers mean to `fedctl check`: passed or not, the words, the remedies."""

import pytest

from fedctl.environment import Environment, Given, version_here
from fedctl.errors import ConnectionLost, HostKeyError, LoginError, NodeError, Unreachable
from fedctl.federation import Node
from fedctl.operations import findings, owned

NODE = Node(name="bob", host="bob.example.org")
LOCAL = Node(name="bob")
FACTS = {
    "hostname": "bob-1",
    "system": "Linux 6.1 x86_64",
    "python": "3.11.2",
    "user": "fed",
    "home": "/home/fed/.fedctl",
    "memory": 64e9,
    "memory_available": 50e9,
    "disk_free": 200e9,
    "cpus": 8,
}
MADE = Environment(python="3.11", requirements="")
GIVEN = Given(python="/opt/python")
A100 = {"name": "NVIDIA A100", "memory": "81920", "driver": "550.54"}


@pytest.mark.parametrize(
    ("error", "stages"),
    [
        (Unreachable("x", stage="name"), ["name"]),
        (Unreachable("x"), ["name", "network"]),
        (Unreachable("x", stage="greeting"), ["name", "network"]),
        (HostKeyError("x"), ["name", "network", "host key"]),
        (LoginError("x"), ["name", "network", "host key", "login"]),
        (NodeError("x"), ["name", "network", "host key", "login", "agent"]),
        (ConnectionLost("x"), ["name", "network", "host key", "login", "agent"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_ends_the_row_where_it_belongs(error, stages):
    row = list(findings.unreached(NODE, error))
    assert [one.name for one in row] == stages
    assert [one.passed for one in row] == [True] * (len(stages) - 1) + [False]
    assert row[-1].value == "x"
    assert row[-1].remedy


def test_the_hint_of_an_error_is_its_remedy():
    assert list(findings.unreached(NODE, LoginError("x", hint="do this")))[-1].remedy == "do this"


def test_a_local_node_is_reached_or_not():
    assert [(one.name, one.passed) for one in findings.unreached(LOCAL, NodeError("x"))] == [("reach", False)]
    assert [(one.name, one.passed) for one in findings.reached(LOCAL, FACTS, "")] == [("reach", True)]


def test_what_a_shell_says_is_a_note():
    row = {one.name: one for one in findings.reached(NODE, FACTS, "\nwelcome\nto bob")}
    assert all(one.passed for one in row.values())
    assert "'welcome'" in row["agent"].note
    assert row["login"].value == "as fed"
    assert row["forced command"].value == "no"


def stand(version, **packages):
    every = {"torch": "2.0", "numpy": "2.0", "safetensors": "0.5", "pytorch-lightning": "2.0", **packages}
    return {"python": {"python": version, "packages": every}}


@pytest.mark.parametrize(
    ("environment", "said", "passed", "remedy"),
    [
        (GIVEN, stand("3.10.1"), True, ""),
        (GIVEN, stand("3.8.10"), False, "3.10 or newer"),
        (GIVEN, stand("weird"), False, "3.10 or newer"),
        (GIVEN, {"error": "/opt/python does not run"}, False, "correct `python:`"),
        (GIVEN, {"python": {"python": 3, "packages": []}}, False, "correct `python:`"),
        (MADE, {"environment": {"version": "3.11", "ready": True, "digest": "x"}}, True, ""),
        (MADE, {"environment": {"version": "3.11", "ready": False, "digest": "x"}}, True, ""),
        (MADE, {"error": "there is no Python of 3.10 or newer, and no uv that could fetch one"}, False, "uv"),
        (MADE, {}, False, "uv"),
        (
            MADE,
            {"error": "no", "pythons": ["/opt/ml/bin/python", "/b"]},
            False,
            "write `python: /opt/ml/bin/python` for",
        ),
        (MADE, {"error": "no", "pythons": []}, False, "ask its owner to name a Python"),
        (MADE, {"error": "no", "pythons": [5]}, False, "uv"),
    ],
)
def test_the_python_of_tasks(environment, said, passed, remedy):
    node = Node(name="bob", host="bob", python="/opt/python" if environment is GIVEN else None)
    first = next(findings.python(node, environment, said))
    assert (first.name, first.passed) == ("python", passed)
    assert remedy in first.remedy


def test_an_environment_that_is_not_made_yet_is_a_note():
    said = {"environment": {"version": "3.11", "ready": False, "digest": "x"}}
    assert "fedctl provision" in next(findings.python(NODE, MADE, said)).note


def test_packages_that_lack_and_packages_that_differ():
    node = Node(name="bob", host="bob", python="/opt/python")
    _, packages = findings.python(node, GIVEN, stand("3.11", torch=None, **{"pytorch-lightning": None}))
    assert packages.value == "without torch, pytorch-lightning"
    assert f"`/opt/python -m pip install torch=={version_here('torch')}" in packages.remedy
    _, packages = findings.python(node, GIVEN, stand("3.11", torch="1.2.3"))
    assert packages.passed
    assert packages.note.startswith(f"torch is 1.2.3 there and {version_here('torch')} here")


def test_room_is_judged_by_what_the_run_needs():
    disk, memory = findings.room(FACTS, int(6e9), int(6e9))
    assert disk.value == "200 GB free, 6.5 GB needed, 6.0 GB of it for the environment"
    assert memory.value == "64 GB, 50 GB available, 8 cores"
    assert disk.passed
    assert memory.passed
    disk, memory = findings.room({**FACTS, "disk_free": 6e9, "memory": 1e9}, int(6e9), 0)
    assert not disk.passed
    assert not memory.passed
    assert "/home/fed/.fedctl" in disk.remedy


def on(accelerator="auto", devices="auto", system="Linux 6.1 x86_64", **answer):
    node = Node(name="bob", host="bob", accelerator=accelerator, devices=devices)
    return findings.accelerator(node, {"system": system}, {"gpus": [], **answer})


MAC = "Darwin 24.0 arm64"


@pytest.mark.parametrize(
    ("found", "mark"),
    [
        (on(), "cpu"),
        (on("cpu", gpus=[A100]), "cpu"),
        (on(gpus=[A100]), "gpu"),
        (on("gpu", gpus=[A100, A100]), "2 gpu"),
        (on("gpu", 1, gpus=[A100, A100]), "gpu"),
        (on(gpus=[A100], torch={"gpus": [], "mps": False}), "cpu"),
        (on(system=MAC), "mps"),
        (on("mps", system=MAC), "mps"),
        (on("gpu", system=MAC), "mps"),
        (on(system=MAC, torch={"gpus": [], "mps": False}), "cpu"),
        (on("cpu", 4), "cpu"),
    ],
)
def test_the_choice_of_an_accelerator(found, mark):
    assert found.passed
    assert found.mark == mark
    assert found.value.startswith(mark.split()[-1])


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (on("gpu"), "no gpu is there"),
        (on("mps"), "no mps is there"),
        (on("gpu", trouble="driver/library version mismatch"), "version mismatch"),
        (on("gpu", gpus=[A100], torch={"gpus": [], "mps": False}), "torch there does not see"),
        (on("gpu", 3, gpus=[A100, A100]), "2 of the 3 devices"),
        (on("auto", 3, gpus=[A100]), "1 of the 3 devices"),
    ],
)
def test_an_accelerator_that_is_not_there(found, said):
    assert not found.passed
    assert said in found.value
    assert found.remedy


def test_a_gpu_is_described():
    assert on(gpus=[A100, A100]).value == "gpu: 2 x NVIDIA A100, 86 GB each, driver 550.54"


@pytest.mark.parametrize(
    ("skew", "passed", "value"), [(0.4, True, "in step"), (-3, True, "-3 s"), (60, False, "+60 s")]
)
def test_a_clock(skew, passed, value):
    clock = findings.clock(skew)
    assert (clock.passed, clock.value) == (passed, value)


def test_data_that_is_there_and_data_that_is_not():
    here, hidden = {"exists": True, "readable": True}, {"exists": True, "readable": False}
    assert owned.data(["/a"], [here]).passed
    assert owned.data([], []).mark == "-"
    found = owned.data(["/a", "/b", "/c"], [here, hidden, {"exists": False, "readable": False}])
    assert not found.passed
    assert found.value == "/b may not be read; /c is not there"
    assert not owned.data(["/a"], [None]).passed


def test_a_hostile_node_makes_findings_and_no_exception():
    nonsense = {name: [None] for name in FACTS}
    assert not any(one.passed for one in findings.room(nonsense, 0, 0))
    assert list(findings.reached(NODE, nonsense, ""))
    assert not next(findings.python(NODE, MADE, {"environment": 7})).passed
    for gpus in (None, 7, [7], [{"name": 7}], [{"name": "x" * 9999, "memory": "-"}]):
        assert on(gpus=gpus, torch={"gpus": 7}, trouble=7).name == "accelerator"
    assert findings.trial({"present": "yes", "failure": 7}).mark == "later"
    assert findings.number({"time": float("nan")}, "time") == 0


@pytest.mark.parametrize("value", [10**400, float("nan"), float("inf"), -1, "5", None, [5]])
def test_a_figure_that_is_none_is_nothing(value):
    assert findings.number({"memory": value}, "memory") == 0.0


def test_an_endless_memory_of_a_gpu_ends_nothing():
    card = {**A100, "memory": "9" * 999}
    assert findings.accelerator(NODE, FACTS, {"gpus": [card]}).passed


def test_whether_a_node_may_be_used_now_is_told_and_a_no_is_no_failure():
    assert findings.when({"may": True, "why": "", "seconds": 0.0}).value == "may be used now"
    no = findings.when({"may": False, "why": "on battery", "seconds": 0.0})
    assert (no.passed, no.note) == (True, "not to be used now: on battery")
    for answer in ({"error": "/opt/idle cannot be run"}, {}, {"may": False, "why": 7}):
        assert not findings.when(answer).passed


def test_a_failed_import_whose_cause_is_known_here_has_that_remedy():
    failed = {"present": True, "failure": "ModuleNotFoundError: No module named 'x'"}
    assert "requirements.txt" in findings.trial(failed).remedy
    assert findings.trial(failed, "x.py stays").remedy == "x.py stays"
