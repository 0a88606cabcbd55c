"""Runs whose rounds share a part of the model: killed and resumed, held and committed, and what a round would give."""

import os
import signal

import pytest
import torch

from fedctl.records import TaskKey
from fedctl.weights import Weights
from tests.e2e.conftest import Place

FEDERATION = """
name: sharing
rounds: 4
task: {model: model.py:Net, data: data.py:Rows, trainer: {max_epochs: 1}}
strategy: fedavgm
schedule: {quorum: 1.0}
share: {every: {"body.*": 2, "head.*": 3}, change: 0.02}
codec: {up: [delta, int4, zstd]}
defaults: {accelerator: cpu, threads: 1, slots: 2}
nodes:
  - {name: left, data: {sign: 1}}
  - {name: right, data: {sign: -1}}
"""
MODEL = """
import time

import pytorch_lightning as pl
import torch
from torch.nn.functional import cross_entropy

class Net(pl.LightningModule):
    def __init__(self, pace=0.0):
        super().__init__()
        self.pace = pace
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 256), torch.nn.Tanh(), torch.nn.Linear(256, 32))
        self.head = torch.nn.Linear(32, 2)

    def training_step(self, batch, index):
        time.sleep(self.pace)
        return cross_entropy(self.head(self.body(batch[0])), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
"""
DATA = """
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

class Rows(pl.LightningDataModule):
    def __init__(self, sign):
        super().__init__()
        rows = torch.randn(80, 4, generator=torch.Generator().manual_seed(3))
        self.rows = TensorDataset(rows, (sign * rows[:, 0] > 0).long())

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=8)
"""


@pytest.fixture(scope="module")
def place(make_place) -> Place:
    """With the run `calm`, which nothing disturbed."""
    place = make_place("blank")
    for name, text in {"fed.yaml": FEDERATION, "model.py": MODEL, "data.py": DATA}.items():
        (place.folder / name).write_text(text)
    place.fedctl("launch", "--run", "calm")
    return place


def weights(place: Place, run: str, file: str) -> dict[str, torch.Tensor]:
    path = place.folder / "runs" / run / "rounds" / file
    return {name: tensor.clone() for name, tensor in Weights.open(path).items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def updates(place: Place, run: str) -> dict[str, dict]:
    return {event["task"]: event for event in place.events(run) if event["event"] == "UpdateReceived"}


def test_what_is_not_due_stays_as_it_was_and_takes_no_bytes(place):
    models = [weights(place, "calm", f"{number:04d}/model.safetensors") for number in range(5)]
    body, head = {"body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias"}, {"head.weight", "head.bias"}
    for number, due in enumerate((set(), body, head, body), start=1):
        assert weights(place, "calm", f"{number:04d}/updates/left.safetensors").keys() == due
        moved = {name for name in body | head if not torch.equal(models[number][name], models[number - 1][name])}
        assert moved <= due
        assert bool(moved) == bool(due)
    traffic = {task: event["bytes"] for task, event in updates(place, "calm").items()}
    came = [traffic[f"r{number:04d}/left/a1"]["received"] for number in (1, 2, 3, 4)]
    sent = [0] * 5
    for event in place.events("calm"):  # a model goes with the first task that wants it, to be trained or to be scored
        if "bytes" in event:
            key = TaskKey.parse(event["task"])
            sent[key.round - (key.kind == "train")] += event["bytes"]["sent"]
    size = (place.folder / "runs/calm/rounds/0000/model.safetensors").stat().st_size
    assert sent[0] == size
    assert max(came[0], came[2], sent[1], sent[3]) < size / 20, "models go as what of them has changed"
    assert max(came[1], came[3]) < size / 6
    assert size / 4 < sent[2] < size


def test_a_run_that_dies_goes_on_with_what_waits_on_its_nodes(place):
    """Killed as round 2 trains, which shares what has waited, coordinator, workers and all."""
    with place.start("launch", "--run", "dies", "--set", "task.model_args.pace=0.05") as process:
        place.wait_for(lambda events: any(e.get("task") == "r0002/left/a1" for e in events), "dies")
        for pid in {process.pid, *place.processes()}:
            os.kill(pid, signal.SIGKILL)
    place.fedctl("launch", "--resume", "dies")
    files = [f"{number:04d}/model.safetensors" for number in (1, 2, 3, 4)]
    files += ["0004/memory.safetensors", "0002/updates/left.safetensors", "0004/updates/right.safetensors"]
    for file in files:
        assert same(weights(place, "calm", file), weights(place, "dies", file)), file
    assert not any(event["fresh"] for event in updates(place, "dies").values())


def test_what_if_is_what_the_run_made_and_a_whole_model(place):
    place.fedctl("aggregate", "calm", "--round", "4", "-o", "again.safetensors")
    again = dict(Weights.open(place.folder / "again.safetensors"))
    assert same(again, weights(place, "calm", "0004/model.safetensors"))
    report = place.json("aggregate", "calm", "--round", "3", "--strategy", "median", "-o", "median.ckpt")
    assert report["tensors"] == 2
    written = torch.load(place.folder / "median.ckpt", weights_only=True)["state_dict"]
    before = weights(place, "calm", "0002/model.safetensors")
    assert written.keys() == before.keys()
    assert torch.equal(written["body.0.weight"], before["body.0.weight"])
    assert not torch.equal(written["head.weight"], before["head.weight"])
    refused = place.fedctl("aggregate", "calm", "--round", "1", code=7)
    assert "round 1 of run calm shared no tensor" in refused.stderr


def test_rounds_that_are_closed_by_hand_share_the_same(place):
    place.fedctl("launch", "--run", "held", "--hold")
    place.fedctl("aggregate", "held", "--commit")
    place.fedctl("launch", "--resume", "held", "--hold")
    place.fedctl("aggregate", "held", "--commit")
    for file in ("0001/model", "0002/model", "0002/memory"):
        assert same(weights(place, "held", f"{file}.safetensors"), weights(place, "calm", f"{file}.safetensors"))


def test_a_pattern_that_matches_nothing_is_refused(place):
    refused = place.fedctl("launch", "--run", "refused", "--set", 'share={every: {"haed.*": 2}}', code=3)
    assert "no tensor of the model matches `haed.*`" in refused.stderr
    assert not (place.folder / "runs/refused").exists()
