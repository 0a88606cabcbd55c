"""Runs whose updates are masked, over the real program: what they come to, what they tell, and what befalls them."""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedctl.aggregation import aggregate_round
from fedctl.dp.accounting import epsilon
from fedctl.errors import ConfigError, FedctlError, StateError, UsageError
from fedctl.federation import Named
from fedctl.operations.aggregate import Request, aggregate
from fedctl.strategies import build
from fedctl.weights import Weights
from tests.bed.processes import wait_until
from tests.e2e.conftest import Place

FEDERATION = """
name: masked
rounds: 2
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
import time

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
        while index == 1 and data.gate and not os.path.exists(data.gate):
            time.sleep(0.05)
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
    def __init__(self, site, dies=None, gate=None):
        super().__init__()
        self.site, self.dies, self.gate = site, dies, gate
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
SECURE = "privacy={secure_aggregation: true}"
CENTRAL = "privacy={differential_privacy: {mode: central, noise: 2.0, clip: 1.0, epsilon: 2.5}}"
DISTRIBUTED = "privacy={secure_aggregation: true, differential_privacy: {mode: distributed, noise: 0.01, clip: 0.5}}"


@pytest.fixture(scope="module")
def place(make_place) -> Place:
    """With runs that go at the same time: `plain`, of which nothing is masked, two with noise, and `held`.

    That one is by fedadam, and dot dies in its training, after its shares are out.
    """
    place = make_place("blank")
    for name, text in {"fed.yaml": FEDERATION, "model.py": MODEL, "data.py": DATA}.items():
        (place.folder / name).write_text(text)
    adam = ("task.data_args.dies=3", "strategy={name: fedadam, lr: 0.01}", "rounds=1")
    runs = {
        "plain": place.start("launch", "--run", "plain"),
        "held": place.start("launch", "--run", "held", "--hold", *given(SECURE, *adam)),
        "central": place.start("launch", "--run", "central", *given(CENTRAL)),
        "distributed": place.start("launch", "--run", "distributed", *given(DISTRIBUTED, "rounds=1")),
    }
    for run, process in runs.items():
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, f"{run}: {said}"
    return place


@pytest.fixture(scope="module")
def killed(place) -> Place:
    """With the run `killed`, whose coordinator dies in every step of its first round.

    No training goes on before the coordinator has heard of one.
    """
    gate = place.folder / "gate"
    given_first = given(SECURE, f"task.data_args.gate={gate}")
    for step in STEPS:
        way = ("launch", "--run", "killed", *given_first) if step == "keys" else ("launch", "--resume", "killed")
        dying = subprocess.Popen(
            [sys.executable, "-c", DYING, f"r0001/{step}", *way],
            cwd=place.folder,
            env=place.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if step == "train":
            wait_until(lambda: trainings(place, "killed"), "no training was heard of", seconds=60)
            gate.touch()
        _, said = dying.communicate(timeout=120)
        assert dying.returncode == -signal.SIGKILL, said.decode()
        answer = "UpdateReceived" if step == "train" else "MessageReceived"
        assert answer in [event["event"] for event in place.events("killed")[-2:]], "a task may have begun meanwhile"
    place.fedctl("launch", "--resume", "killed")
    return place


def given(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def trainings(place: Place, run: str) -> list[dict[str, Any]]:
    """What was told of the run's trainings while they went on."""
    path = place.folder / "runs" / run / "metrics.jsonl"
    samples = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [sample for sample in samples if sample.get("phase") == "training"]


def refused(place: Place, kind: type[FedctlError], *sources: str, **more) -> FedctlError:
    """The refusal of an aggregation in that folder."""
    with pytest.raises(kind) as error:
        aggregate(Request(sources=sources, folder=place.folder, **more))
    return error.value


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


def in_a_row(tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    """All floating values, in the order of names."""
    floating = (tensors[name] for name in sorted(tensors) if tensors[name].is_floating_point())
    return torch.cat([tensor.reshape(-1) for tensor in floating]).numpy()


def answers(place: Place, run: str, kind: str) -> list[dict]:
    return [event for event in place.events(run) if event["event"] == kind]


def row(place: Place, run: str, number: int, node: str) -> np.ndarray:
    """A masked update as the coordinator has it."""
    return Weights.open(path_of(place, run, f"{number:04d}/updates/{node}.safetensors"))["masked"].numpy()


def test_a_masked_run_that_was_killed_in_every_step_is_a_plain_one_within_rounding(killed):
    """Not to the bit: rounding to whole numbers is by chance, and fresh in each run."""
    assert len(answers(killed, "killed", "RunStarted")) == 1 + len(STEPS)
    for number in (1, 2):
        assert_close(model(killed, "killed", number), model(killed, "plain", number))
        assert model(killed, "killed", number)["norm.running_mean"].abs().max() > 0
    assert killed.json("status", "killed")["state"] == "finished"


def test_of_every_training_one_masked_row_left_its_node(killed):
    rows: dict[str, set[str]] = {}
    results = 0
    for path in killed.home.glob("runs/killed/r*-*-a[0-9]/result.json"):
        result = json.loads(path.read_text())
        rows.setdefault(result["key"], set()).add(result["update"]["digest"])
        results += 1
    received = {event["task"]: {event["update"]["digest"]} for event in answers(killed, "killed", "UpdateReceived")}
    assert rows == received
    assert results == 2 * len(NODES)
    ledger = [json.loads(line) for line in (killed.home / "ledger.jsonl").read_text().splitlines()]
    left = {
        (e["task"], e["sha256"])
        for e in ledger
        if e.get("run") == "killed" and e["kind"] == "update" and e["task"].endswith("/a1")
    }
    assert left == {(task, digest) for task, (digest,) in received.items()}


def test_the_coordinator_keeps_nothing_that_tells_of_a_single_node(killed):
    folder = killed.folder / "runs/killed"
    for event in answers(killed, "killed", "UpdateReceived"):
        assert (event["examples"], event["steps"], event["metrics"]) == (0, 0, {})
    samples = trainings(killed, "killed")
    assert {sample["steps"] for sample in samples} == {10}, "the number of batches would tell that of examples"
    assert not any(sample["metrics"] for sample in samples)
    base = in_a_row(model(killed, "plain", 0))
    for node in NODES:
        way = in_a_row(Weights.open(path_of(killed, "plain", f"0001/updates/{node}.safetensors"))) - base
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


def test_a_round_goes_on_without_a_node_that_dies_after_its_shares_and_is_closed_by_hand(place):
    """The model is that of the others' updates, by their examples, and by the run's own strategy."""
    said = {event["task"] for event in answers(place, "held", "MessageReceived")}
    assert {"r0001/dot/k1", "r0001/dot/h1"} <= said
    assert not {"r0001/dot/g1", "r0001/dot/u1"} & said
    (failed,) = answers(place, "held", "TaskFailed")
    assert (failed["task"], "SIGKILL" in failed["reason"]) == ("r0001/dot/a1", True)
    assert answers(place, "held", "RoundHeld")

    masked = refused(place, StateError, "held")
    assert "the updates of run held are masked" in masked.message
    assert "`fedctl aggregate held --commit`" in masked.hint
    assert "sees no single update" in refused(place, ConfigError, "held", commit=True, strategy="median").message
    one = path_of(place, "held", "0001/updates/ann.safetensors")
    alone = refused(place, UsageError, str(one), output=place.folder / "out.safetensors")
    assert "is a masked update, which tells nothing alone" in alone.message

    committed = aggregate(Request(sources=("held",), folder=place.folder, commit=True))
    assert committed.contributors == ("ann", "ben", "cid")
    out = place.folder / "expected.safetensors"
    aggregate_round(
        path_of(place, "plain", "0000/model.safetensors"),
        {name: (path_of(place, "plain", f"0001/updates/{name}.safetensors"), EXAMPLES[name]) for name in NODES[:3]},
        memory=None,
        strategy=build(Named(name="fedadam", options={"lr": 0.01})),
        model_out=out,
        memory_out=None,
    )
    assert_close(model(place, "held", 1), {name: tensor.clone() for name, tensor in Weights.open(out).items()})


def test_two_runs_rows_have_nothing_in_common(killed):
    for node in NODES[:3]:
        one, other = row(killed, "killed", 1, node), row(killed, "held", 1, node)
        assert_uniform(one - other)


def test_noise_of_the_coordinator_is_counted_and_its_budget_ends_the_run(place):
    """It has room for one round; nobody is masked."""
    status = place.json("status", "central")
    privacy = status["privacy"]
    assert (status["state"], status["round"], status["rounds"]) == ("finished", 1, 2)
    assert "its privacy budget is spent" in status["reason"]
    assert (privacy["noise"], privacy["budget"]) == ("central", 2.5)
    assert privacy["epsilon"] == pytest.approx(epsilon([(2.0, 1.0, 1)], 1e-5))
    assert privacy["epsilon_next"] == pytest.approx(epsilon([(2.0, 1.0, 2)], 1e-5))
    assert privacy["epsilon"] < 2.5 < privacy["epsilon_next"]
    checkpoint = torch.load(place.folder / "runs/central/model.ckpt", weights_only=False)
    assert f"{privacy['epsilon']:.6g}" in str({key: said for key, said in checkpoint.items() if key != "state_dict"})
    assert "without its noise" in refused(place, StateError, "central").message


def test_noise_of_the_nodes_is_in_the_sum_and_counted(place):
    """So little of it that what the nodes learnt shows: no update counts for more than the clip, and theirs do."""
    status = place.json("status", "distributed")
    assert (status["state"], status["privacy"]["noise"]) == ("finished", "distributed")
    assert status["privacy"]["epsilon"] == pytest.approx(epsilon([(0.01, 1.0, 1)], 1e-5, is_discrete=True))
    way = in_a_row(model(place, "distributed", 1)) - in_a_row(model(place, "plain", 0))
    assert 0.1 < np.linalg.norm(way) < 0.6
    wanted = in_a_row(model(place, "plain", 1)) - in_a_row(model(place, "plain", 0))
    assert np.corrcoef(way, wanted)[0, 1] > 0.5
