"""Runs whose updates are masked, over the real program: what they come to, what they tell, and what befalls them."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fedctl.aggregation import aggregate_round
from fedctl.dp.accounting import epsilon
from fedctl.federation import Named
from fedctl.strategies import build
from fedctl.weights import Weights
from tests.e2e.conftest import Place

FEDERATION = """
name: masked
rounds: 5
task: {model: model.py:Net, data: data.py:Rows, trainer: {max_epochs: 1}}
schedule: {quorum: 3, attempts: 1}
defaults: {accelerator: cpu, threads: 1, slots: 2}
nodes:
  - {name: ann, data: {site: 0}}
  - {name: ben, data: {site: 1}}
  - {name: cid, data: {site: 2}}
  - {name: dot, data: {site: 3}}
"""
MODEL = """
import os

import pytorch_lightning as pl
import torch
from torch.nn.functional import cross_entropy

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(4, 200)
        self.norm = torch.nn.BatchNorm1d(200)
        self.head = torch.nn.Linear(200, 2)

    def training_step(self, batch, index):
        data = self.trainer.datamodule
        if data.site == data.dies:
            os.kill(os.getpid(), 9)
        loss = cross_entropy(self.head(self.norm(self.body(batch[0]))), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
"""
DATA = """
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

class Rows(pl.LightningDataModule):
    def __init__(self, site, dies=None):
        super().__init__()
        self.site, self.dies = site, dies
        rows = torch.randn(100 + 150 * site, 4, generator=torch.Generator().manual_seed(site))
        self.rows = TensorDataset(rows, (rows[:, site] > 0).long())

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=25)
"""
DYING = """
import os, signal, sys
from fedctl import cli, coordinator
from fedctl.events import MessageReceived, UpdateReceived

mark, *sys.argv[1:] = sys.argv[1:]

class Dying(coordinator.Journal):
    def append(self, batch):
        events = list(batch)
        super().append(events)
        answers = [event.task for event in events if isinstance(event, MessageReceived | UpdateReceived)]
        if any(f"r{key.round:04d}/{key.kind}" == mark for key in answers):
            os.kill(os.getpid(), signal.SIGKILL)

coordinator.Journal = Dying
cli.main()
"""
STEPS = ("keys", "shares", "train", "agree", "unmask")
NODES = ("ann", "ben", "cid", "dot")
EXAMPLES = dict(zip(NODES, (100, 250, 400, 550), strict=True))
SECURE = ("--set", "privacy={secure_aggregation: true}")


@pytest.fixture(scope="module")
def place(make_place) -> Place:
    """With the run `plain`, of which nothing is masked."""
    place = make_place("blank")
    for name, text in {"fed.yaml": FEDERATION, "model.py": MODEL, "data.py": DATA}.items():
        (place.folder / name).write_text(text)
    place.fedctl("launch", "--run", "plain")
    return place


@pytest.fixture(scope="module")
def killed(place) -> Place:
    """With the run `killed`, whose coordinator dies in step after step, each in a round of its own."""
    for number, step in enumerate(STEPS, start=1):
        way = ("launch", "--run", "killed", *SECURE) if number == 1 else ("launch", "--resume", "killed")
        died = subprocess.run(
            [sys.executable, "-c", DYING, f"r{number:04d}/{step}", *way],
            cwd=place.folder,
            env=place.environment,
            capture_output=True,
            timeout=120,
        )
        assert died.returncode == -signal.SIGKILL, died.stderr.decode()
        assert place.events("killed")[-1]["event"] == ("UpdateReceived" if step == "train" else "MessageReceived")
    place.fedctl("launch", "--resume", "killed")
    return place


@pytest.fixture(scope="module")
def held(place) -> Place:
    """With the run `held`, by fedadam; dot dies in its training, after its shares are out."""
    more = ("--set", "task.data_args.dies=3", "--set", "strategy={name: fedadam, lr: 0.01}", "--set", "rounds=1")
    place.fedctl("launch", "--run", "held", *SECURE, *more, "--hold")
    return place


def path_of(place: Place, run: str, file: str) -> Path:
    return place.folder / "runs" / run / "rounds" / file


def model(place: Place, run: str, number: int) -> dict[str, torch.Tensor]:
    return {
        name: tensor.clone()
        for name, tensor in Weights.open(path_of(place, run, f"{number:04d}/model.safetensors")).items()
    }


def assert_close(one, other) -> None:
    """The same floating tensors within rounding; integers stay the first model's."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(
                tensor, other[name], rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )
        else:
            assert tensor == 0


def answers(place: Place, run: str, kind: str) -> list[dict]:
    return [event for event in place.events(run) if event["event"] == kind]


def row(place: Place, run: str, number: int, node: str) -> np.ndarray:
    """A masked update as the coordinator has it."""
    return Weights.open(path_of(place, run, f"{number:04d}/updates/{node}.safetensors"))["masked"].numpy()


def test_a_masked_run_that_was_killed_in_every_step_is_a_plain_one_within_rounding(killed):
    """Not to the bit: rounding to whole numbers is by chance, and fresh in each run."""
    assert len(answers(killed, "killed", "RunStarted")) == 1 + len(STEPS)
    for number in range(1, 6):
        assert_close(model(killed, "killed", number), model(killed, "plain", number))
        assert model(killed, "killed", number)["norm.running_mean"].abs().max() > 0
    assert killed.json("status", "killed")["state"] == "finished"


def test_of_every_training_one_masked_row_left_its_node(killed):
    rows: dict[str, set[str]] = {}
    results = 0
    for path in killed.home.glob("runs/killed/r*-a*/result.json"):
        result = json.loads(path.read_text())
        rows.setdefault(result["key"], set()).add(result["update"]["digest"])
        results += 1
    received = {event["task"]: {event["update"]["digest"]} for event in answers(killed, "killed", "UpdateReceived")}
    assert rows == received
    assert results == 5 * len(NODES)
    ledger = [json.loads(line) for line in (killed.home / "ledger.jsonl").read_text().splitlines()]
    left = {(e["task"], e["sha256"]) for e in ledger if e["run"] == "killed" and e["kind"] == "update"}
    assert left == {(task, digest) for task, (digest,) in received.items()}


def test_the_coordinator_keeps_nothing_that_tells_of_a_single_node(killed):
    folder = killed.folder / "runs/killed"
    for event in answers(killed, "killed", "UpdateReceived"):
        assert (event["examples"], event["steps"], event["metrics"]) == (0, 0, {})
    trainings = [
        sample
        for line in (folder / "metrics.jsonl").read_text().splitlines()
        if (sample := json.loads(line))["phase"] == "training"
    ]
    assert trainings
    assert {sample["steps"] for sample in trainings} == {10}, "the number of batches would tell that of examples"
    assert not any(sample["metrics"] for sample in trainings)
    base = model(killed, "plain", 0)
    for node in NODES:
        plain = dict(Weights.open(path_of(killed, "plain", f"0001/updates/{node}.safetensors")))
        way = np.concatenate(
            [(plain[name] - base[name]).numpy().ravel() for name in sorted(base) if base[name].is_floating_point()]
        )
        masked = row(killed, "killed", 1, node)
        assert len(masked) == len(way) + 1
        assert_uniform(masked)
        assert abs(np.corrcoef(masked[:-1].astype(np.int32), way)[0, 1]) < 4 / np.sqrt(len(way))
        assert masked[-1] != EXAMPLES[node]
    files = b"".join(
        path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix in (".json", ".jsonl")
    )
    assert b"train_loss" not in files


def assert_uniform(elements: np.ndarray) -> None:
    """Every bit is set in half of them, and their bytes are spread evenly, as far as chance allows (6 sigma)."""
    bits = np.unpackbits(elements.view(np.uint8)).reshape(len(elements), -1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 3 / np.sqrt(len(elements))
    counts = np.bincount(elements.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * np.sqrt(2 * 255)


def test_a_round_goes_on_without_a_node_that_dies_after_its_shares_and_is_closed_by_hand(held):
    """The model is that of the others' updates, by their examples, and by the run's own strategy."""
    said = {event["task"] for event in answers(held, "held", "MessageReceived")}
    assert {"r0001/dot/k1", "r0001/dot/h1"} <= said
    assert not {"r0001/dot/g1", "r0001/dot/u1"} & said
    (failed,) = answers(held, "held", "TaskFailed")
    assert (failed["task"], "SIGKILL" in failed["reason"]) == ("r0001/dot/a1", True)
    assert answers(held, "held", "RoundHeld")

    refused = held.fedctl("aggregate", "held", code=7)
    assert "the updates of run held are masked" in refused.stderr
    assert "`fedctl aggregate held --commit`" in refused.stderr
    refused = held.fedctl("aggregate", "held", "--commit", "--strategy", "median", code=3)
    assert "the coordinator sees no single update" in refused.stderr
    one = path_of(held, "held", "0001/updates/ann.safetensors")
    refused = held.fedctl("aggregate", str(one), "-o", "out.safetensors", code=2)
    assert "is a masked update, which tells nothing alone" in refused.stderr

    committed = held.json("aggregate", "held", "--commit")
    assert committed["contributors"] == ["ann", "ben", "cid"]
    out = held.folder / "expected.safetensors"
    aggregate_round(
        path_of(held, "plain", "0000/model.safetensors"),
        {name: (path_of(held, "plain", f"0001/updates/{name}.safetensors"), EXAMPLES[name]) for name in NODES[:3]},
        memory=None,
        strategy=build(Named(name="fedadam", options={"lr": 0.01})),
        model_out=out,
        memory_out=None,
    )
    assert_close(model(held, "held", 1), {name: tensor.clone() for name, tensor in Weights.open(out).items()})


def test_two_runs_rows_have_nothing_in_common(killed, held):
    for node in NODES[:3]:
        one, other = row(killed, "killed", 1, node), row(held, "held", 1, node)
        assert_uniform(one - other)


def test_noise_of_the_coordinator_is_counted_and_its_budget_ends_the_run(place):
    """Of four rounds that noise 1 allows two; nobody is masked."""
    dp = "privacy={differential_privacy: {mode: central, noise: 1.5, clip: 1.0, epsilon: 5.0}}"
    said = place.fedctl("launch", "--run", "central", "--set", dp).stdout
    assert "its privacy budget is spent" in said
    status = place.json("status", "central")
    done, privacy = status["round"], status["privacy"]
    assert status["state"] == "finished"
    assert 1 <= done < 5
    assert privacy["noise"] == "central"
    assert privacy["epsilon"] <= privacy["budget"] == 5.0 < privacy["epsilon_next"]
    assert privacy["epsilon"] == pytest.approx(epsilon([(1.5, 1.0, done)], 1e-5))
    checkpoint = torch.load(place.folder / "runs/central/model.ckpt", weights_only=False)
    assert f"{privacy['epsilon']:.6g}" in str({k: v for k, v in checkpoint.items() if k != "state_dict"})
    refused = place.fedctl("aggregate", "central", code=7)
    assert "without its noise" in refused.stderr


def test_noise_of_the_nodes_is_in_the_sum_and_counted(place):
    dp = "privacy={secure_aggregation: true, differential_privacy: {mode: distributed, noise: 0.01, clip: 0.5}}"
    place.fedctl("launch", "--run", "distributed", "--set", dp, "--set", "rounds=1")
    status = place.json("status", "distributed")
    assert (status["state"], status["privacy"]["noise"]) == ("finished", "distributed")
    assert status["privacy"]["epsilon"] == pytest.approx(epsilon([(0.01, 1.0, 1)], 1e-5, is_discrete=True))
    moved = model(place, "distributed", 1), model(place, "plain", 0)
    way = np.concatenate(
        [(moved[0][n] - moved[1][n]).numpy().ravel() for n in moved[0] if moved[0][n].is_floating_point()]
    )
    assert 0 < np.linalg.norm(way) < 0.5 * 1.2, "no node's update counts for more than the clip"
