"""Two nodes with a parabola each: where algorithms end up is known in closed form, and the whole program gets there.

Node `one` minimises 2 (x - 1)², node `two` (x + 1)² / 2; together they would be best off at 0.6. From x, K_i steps of
SGD with a learning rate of 0.1 lead to x_i = b_i + r_i (x - b_i), with b_i the best for node i, h_i its curvature and
r_i = (1 - 0.1 h_i)^K_i. FedAvg stays where x = (x_1 + x_2) / 2; the others follow in the same way.
"""

import pytest

from fedctl.weights import Weights
from tests.e2e.conftest import Place

FEDERATION = """
name: quadratics
task:
  model: model.py:Quadratics
  data: data.py:Parabola
schedule: {quorum: 1.0}
defaults: {accelerator: cpu, threads: 1}
nodes:
  - {name: one, data: {curvature: 4.0, best: 1.0, steps: [10, 1]}}
  - {name: two, data: {curvature: 1.0, best: -1.0, steps: [10, 10]}}
"""
MODEL = """
import time

import pytorch_lightning as pl
import torch

class Quadratics(pl.LightningModule):
    def __init__(self, settings=2, lr=0.1, pace=0.0):
        super().__init__()
        self.lr, self.pace, self.automatic_optimization = lr, pace, False
        zero = torch.zeros((), dtype=torch.float64)
        self.xs = torch.nn.ParameterList(torch.nn.Parameter(zero.clone()) for _ in range(settings))

    def training_step(self, batch, index):
        time.sleep(self.pace)
        curvature, best, *goes = batch
        optimizers = self.optimizers()
        for x, optimizer, go in zip(self.xs, optimizers if len(self.xs) > 1 else [optimizers], goes):
            if go[0]:
                optimizer.zero_grad()
                self.manual_backward((curvature / 2 * (x - best) ** 2).mean())
                optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD([x], self.lr) for x in self.xs]
"""
DATA = """
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

class Parabola(pl.LightningDataModule):
    '''As many batches as the longest setting has steps, and ten rows in all, so that nodes weigh the same.'''

    def __init__(self, curvature, best, steps):
        super().__init__()
        longest = max(steps)
        self.size = max(10 // longest, 1)
        number = torch.arange(longest).repeat_interleave(self.size)
        shape = torch.ones(len(number), dtype=torch.float64)
        self.rows = TensorDataset(curvature * shape, best * shape, *(number < each for each in steps))

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=self.size)
"""
ONE_SETTING = ("task.model_args.settings=1", "nodes.one.data.steps=[1]", "nodes.two.data.steps=[10]")


@pytest.fixture(scope="module")
def place(make_place) -> Place:
    place = make_place("blank")
    for name, text in {"fed.yaml": FEDERATION, "model.py": MODEL, "data.py": DATA}.items():
        (place.folder / name).write_text(text)
    return place


def values(place: Place, run: str, file: str) -> list[float]:
    weights = Weights.open(place.folder / "runs" / run / "rounds" / file)
    return [weights[name].item() for name in sorted(weights)]


def launch(place: Place, run: str, *settings: str) -> None:
    place.fedctl("launch", "--run", run, *(word for setting in settings for word in ("--set", setting)))


@pytest.mark.parametrize(
    ("run", "rounds", "settings", "ends"),
    [
        ("fedavg", 20, (), [0.208252, -0.239053]),
        ("fedprox", 24, ("local={name: fedprox, mu: 1}",), [0.283338, -0.054723]),
        ("fednova", 14, ("strategy=fednova", *ONE_SETTING), [0.719941]),
        ("scaffold", 40, ("strategy=scaffold",), [0.6, 0.6]),
        ("feddyn", 40, ("strategy={name: feddyn, alpha: 1}",), [0.6, 0.6]),
    ],
)
def test_runs_end_where_the_algorithm_does(place, run, rounds, settings, ends):
    """The first number is with 10 and 10 steps, the second with 1 and 10; fednova knows one number of steps a node."""
    launch(place, run, f"rounds={rounds}", *settings)
    assert values(place, run, f"{rounds:04d}/model.safetensors") == pytest.approx(ends, abs=1e-5)


def test_partial_work_is_drawn_back_as_far_as_its_steps_say(place):
    mu, lr, curvature, best = 1.0, 0.01, 4.0, 1.0
    schedule = ("rounds=1", "schedule.deadline=15s", "schedule.partial=true")
    slow = (*ONE_SETTING, "nodes.one.data.steps=[100000]", f"task.model_args={{settings: 1, lr: {lr}, pace: 0.5}}")
    launch(place, "partial", f"local={{name: fedprox, mu: {mu}}}", *schedule, *slow)
    updates = {e["task"]: e for e in place.events("partial") if e["event"] == "UpdateReceived"}
    one, two = updates["r0001/one/a1"], updates["r0001/two/a1"]
    assert (one["partial"], two["partial"]) == (True, False)
    assert 1 <= one["steps"] <= 15 / 0.5
    ratio, end = 1 - lr * (curvature + mu), curvature * best / (curvature + mu)
    reached = end - end * ratio ** one["steps"]
    assert values(place, "partial", "0001/updates/one.safetensors") == pytest.approx([reached], rel=1e-9)
