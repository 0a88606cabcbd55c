"""What a user gets wrong: an exit code as designed, a sentence, the next thing to type, and nothing touched."""

import json
from pathlib import Path

import pytest

from fedctl import rundir

CASES = [
    (["launch"], 3, "fed.yaml: no such file", "fedctl init"),
    (["launch", "-f", "other/fed.yaml"], 3, "fed.yaml: no such file", "fedctl init"),
    (["check"], 3, "fed.yaml: no such file", "fedctl init"),
    (["check", "--yes"], 2, "--yes answers what --accept-new asks", "add --accept-new"),
    (["status"], 7, "no run in", "fedctl launch"),
    (["status", "nosuch"], 7, "no run nosuch", ""),
    (["logs", "alice"], 7, "no run in", "fedctl launch"),
    (["stop"], 7, "no run in", "fedctl launch"),
    (["clean", "nosuch"], 7, "no run nosuch", ""),
    (["launch", "--resume", "nosuch"], 7, "no run nosuch", ""),
    (["launch", "--resume", "x", "--run", "y"], 2, "--run belongs to a new one", "leave one out"),
    (["launch", "--dry-run", "--detach"], 2, "--dry-run does nothing that could be detached", "leave one out"),
    (["launch", "--detach"], 3, "fed.yaml: no such file", "fedctl init"),
    (["launch", "--detach", "--resume", "nosuch"], 7, "no run nosuch", ""),
    (["clean", "--nodes"], 3, "fed.yaml: no such file", "fedctl init"),
    (["clean", "--force"], 2, "--force is about --nodes", "fedctl stop"),
    (["init", "--template", "digitz"], 2, "no template is called 'digitz'", "`digits`"),
    (["aggregate", "a.safetensors", "-o", "b.safetensors"], 2, "a.safetensors: no such file", ""),
    (["aggregate", "a.safetensors"], 2, "where should the result go?", "-o out.safetensors"),
    (["aggregate", "a.ckpt", "--commit", "-o", "x.ckpt"], 2, "belong to a run", ""),
    (["aggregate", "nosuch", "--model", "a.safetensors"], 2, "--model belongs to files", "leave it out"),
    (["aggregate", "--commit", "--model", "a.safetensors"], 2, "--model belongs to files", "leave it out"),
    (["aggregate", "a.safetensors", "-o", "b.safetensors", "--weights", "x"], 2, "should be numbers", "3,1,1"),
    (["lunch"], 2, "No such command 'lunch'", ""),
    (["launch", "--rnu", "x"], 2, "No such option", ""),
]


@pytest.mark.parametrize(("arguments", "code", "message", "hint"), CASES, ids=lambda value: str(value)[:40])
def test_without_a_federation(fedctl, tmp_path, arguments, code, message, hint):
    said = fedctl(*arguments)
    assert said.code == code
    assert message in said.err
    assert hint in said.err
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


IN_A_FOLDER = [
    (["--set", "rouns=3"], 3, "--set rouns: unknown key", "did you mean `rounds`?"),
    (["--set", "rounds"], 2, "--set rounds", ""),
    (["--set", "rounds=on"], 3, "whole number", ""),
    (["--run", "../x"], 2, "'../x' cannot be the name of a run", ""),
    (["--set", "strategy=fedavgg"], 3, "fedavgg", "did you mean `fedavg`"),
    (["--set", "strategy={name: fedavgm, lrr: 1}"], 3, "lrr", "did you mean `lr`"),
    (["--set", "strategy=krum"], 3, "krum needs 5 updates, and a round may close with 2", "ask 5 nodes or more"),
]


@pytest.mark.parametrize(("arguments", "code", "message", "hint"), IN_A_FOLDER, ids=lambda value: str(value)[:40])
def test_with_a_federation(fedctl, tmp_path, arguments, code, message, hint):
    fedctl("init", "--template", "blank")
    before = sorted(tmp_path.rglob("*"))
    said = fedctl("launch", *arguments)
    assert said.code == code
    assert message in said.err
    assert hint in said.err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_error_is_one_json_object(fedctl):
    said = fedctl("status", "--json")
    assert said.code == 7
    error = said.json["error"]
    assert error["exit_code"] == 7
    assert error["message"].startswith("no run in")
    assert "launch" in error["hint"]
    assert said.err == ""


def test_init_never_overwrites(fedctl, tmp_path):
    fedctl("init")
    (tmp_path / "model.py").write_text("mine")
    said = fedctl("init")
    assert said.code == 2
    assert "--force" in said.err
    assert (tmp_path / "model.py").read_text() == "mine"
    assert fedctl("init", "--force").code == 0
    assert (tmp_path / "model.py").read_text() != "mine"


def test_a_folder_that_cannot_be_written(fedctl, tmp_path):
    fedctl("init", "--template", "blank")
    (tmp_path / "runs").write_text("a file where the folder should be")
    said = fedctl("launch")
    assert said.code == 7
    assert "cannot make the run's folder" in said.err


def test_json_of_init(fedctl, tmp_path):
    made = fedctl("init", "here", "--json").json
    assert made["template"] == "digits"
    assert {"fed.yaml", "model.py", "data.py", "README.md"} <= set(made["files"])
    names = [one["name"] for one in fedctl("init", "--list", "--json").json["templates"]]
    assert names == ["blank", "digits", "hospitals", "lora", "wearables"]


def a_run(folder: Path, name: str, lines: list[dict], **facts: object) -> Path:
    path = folder / "runs" / name
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"schema": rundir.SCHEMA, "identity": "x" * 8, **facts}))
    (path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


STARTED = {
    "at": "2026-11-22T02:30:00.000Z",
    "event": "RunStarted",
    "run": "r",
    "federation": "digits",
    "seed": 7,
    "rounds": 3,
    "nodes": ["alice", "bob"],
    "compare": False,
    "metric": "val_acc",
    "mode": "max",
}


def test_a_damaged_middle_is_named(fedctl, tmp_path):
    path = a_run(tmp_path, "r", [STARTED, STARTED])
    text = (path / "events.jsonl").read_text()
    (path / "events.jsonl").write_text("{oops\n" + text)
    said = fedctl("status", "r")
    assert said.code == 7
    assert "events.jsonl:1: the journal is damaged" in said.err


def test_a_torn_last_line_is_left_out(fedctl, tmp_path):
    path = a_run(tmp_path, "r", [STARTED])
    with (path / "events.jsonl").open("a") as file:
        file.write('{"at":"2026-11-22T02:30:01.000Z","event":"NodeRea')
    said = fedctl("status", "r", "--json")
    assert said.code == 0
    assert said.json["state"] == "interrupted"


def test_a_run_of_another_version_is_refused(fedctl, tmp_path):
    path = a_run(tmp_path, "r", [STARTED])
    (path / "run.json").write_text('{"schema": 99, "fedctl": "9.9"}')
    said = fedctl("status", "r")
    assert said.code == 7
    assert "schema 99" in said.err
    assert "9.9" in said.err


STATUS_KEYS = {"run", "state", "round", "rounds", "model", "metrics", "bytes", "nodes", "history", "compare"}
NODE_KEYS = {"name", "state", "round", "attempt", "metrics", "bytes", "error"}


def test_the_keys_of_status_are_kept(fedctl, tmp_path):
    a_run(tmp_path, "r", [STARTED])
    status = fedctl("status", "r", "--json").json
    assert set(status) >= STATUS_KEYS
    assert set(status["nodes"][0]) >= NODE_KEYS
    assert status["resume"] == "fedctl launch --resume r"
