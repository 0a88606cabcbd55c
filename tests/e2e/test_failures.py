"""Nodes whose code or data fail, in the way that users' do: named, shown, and borne while the quorum holds."""

import pytest

from tests.e2e.conftest import Place

NODES = """
nodes:
  - {name: good, data: {site: 0}}
  - {name: well, data: {site: 0}}
  - {name: raising, data: {site: 1}}
  - {name: diverging, data: {site: 2}}
  - {name: empty, data: {site: 3}}
  - {name: dying, data: {site: 4}}
"""


@pytest.fixture(scope="module")
def place(make_place) -> Place:
    place = make_place("blank")
    text = (place.folder / "fed.yaml").read_text()
    (place.folder / "fed.yaml").write_text(text[: text.index("nodes:")] + "defaults: {accelerator: cpu}" + NODES)
    place.edit(
        "model.py",
        "        loss = functional.mse_loss(self(rows), targets)\n",
        "        loss = functional.mse_loss(self(rows), targets)\n"
        "        site = self.trainer.datamodule.site\n"
        "        if site == 1:\n"
        "            raise KeyError('no such sensor')\n"
        "        if site == 2:\n"
        "            loss = loss * float('nan')\n"
        "        if site == 4:\n"
        "            import os; os.kill(os.getpid(), 9)\n",
    )
    place.edit(
        "data.py",
        "features, targets = read_rows(self.site)",
        "features, targets = (part[: None if self.site != 3 else 0] for part in read_rows(self.site))",
    )
    return place


def test_the_round_goes_on_without_those_that_fail(place):
    said = place.fedctl("launch", "--run", "r", "--set", "rounds=1", "--set", "schedule.quorum=2").stdout
    assert "raising failed" in said
    status = place.json("status", "r")
    assert status["state"] == "finished"
    assert status["history"][1]["contributors"] == ["good", "well"]
    errors = {node["name"]: node["error"] for node in status["nodes"]}
    assert errors["good"] is None
    assert errors["raising"] == "model.py:26: KeyError: 'no such sensor'"
    assert "NaN" in errors["diverging"]
    assert "layer." in errors["diverging"]
    assert "its data is empty" in errors["empty"]
    assert "SIGKILL" in errors["dying"]
    failed = [event["task"] for event in place.events("r") if event["event"] == "TaskFailed"]
    assert sorted(failed) == [
        "r0001/diverging/a1",
        "r0001/dying/a1",
        "r0001/dying/a2",
        "r0001/empty/a1",
        "r0001/raising/a1",
    ]


def test_the_log_shows_the_users_own_traceback(place):
    log = place.fedctl("logs", "raising").stdout
    assert "raise KeyError('no such sensor')" in log


def test_a_quorum_that_is_not_met_ends_the_run(place):
    said = place.fedctl("launch", "--run", "q", "--set", "rounds=1", "--set", "schedule.quorum=3", code=5)
    assert "round 1 has 2 of the 3 updates it needs" in said.stderr
    assert "fedctl launch --resume q" in said.stderr
    assert place.json("status", "q")["state"] == "failed"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "model.py",
            "import torch\n",
            "import nosuchthing\n",
            "model.py:4: ModuleNotFoundError: No module named 'nosuchthing'",
        ),
        ("model.py", "(pl.LightningModule)", "", "model.py:9: Net is no LightningModule"),
        ("model.py", "features: int = 4,", "features: int,", "missing a required argument: 'features'"),
        ("data.py", "def train_dataloader", "def other_dataloader", "data.py:9: Data has no train_dataloader()"),
    ],
)
def test_code_that_cannot_be_used_leaves_no_run(make_place, file, old, new, message):
    place = make_place("blank")
    place.edit(file, old, new)
    said = place.fedctl("launch", code=3)
    assert message in said.stderr
    assert "hint:" in said.stderr
    assert not (place.folder / "runs").exists()
    assert place.processes() == []
