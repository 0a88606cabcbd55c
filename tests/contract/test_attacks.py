"""What somebody who reads an update learns of the examples behind it: with nothing promised, and with each promise.

The attacks are the oldest ones there are, and enough: an image is read out of the update that it made (Zhu, Liu, Han:
Deep Leakage from Gradients, NeurIPS 2019, in the closed form that a linear layer with a bias allows), and members of a
training are told from others by their loss (Yeom, Giacomelli, Fredrikson, Jha, CSF 2018).
"""

import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from fedctl.dp import distributed
from fedctl.dp.central import private
from fedctl.dp.clipping import clipped
from fedctl.dp.noise import Generator
from fedctl.durable import digest
from fedctl.federation import Named
from fedctl.node.trainers.code import load
from fedctl.node.trainers.lightning import perform
from fedctl.privacy import DifferentialPrivacy
from fedctl.records import Task, TaskKey
from fedctl.secagg.ring import Scale
from fedctl.strategies import Contribution, build
from fedctl.weights import Weights, save

CODE = """
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

def digits():
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)

class Net(pl.LightningModule):
    def __init__(self, hidden=0, lr=0.1):
        super().__init__()
        torch.manual_seed(0)
        wide = [torch.nn.Linear(64, hidden), torch.nn.ReLU()] if hidden else []
        self.layers, self.lr = torch.nn.Sequential(*wide, torch.nn.Linear(hidden or 64, 10)), lr

    def training_step(self, batch, index):
        return cross_entropy(self.layers(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)

class Data(pl.LightningDataModule):
    def __init__(self, first=0, count=1, batch=1, labels=None):
        super().__init__()
        x, y = digits()
        y = torch.randint(10, y.shape, generator=torch.Generator().manual_seed(labels)) if labels is not None else y
        self.rows, self.batch = TensorDataset(x[first:first + count], y[first:first + count]), batch

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=self.batch)
"""
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
NODES = 10
NOISE, CLIP = 1.0, 0.5


@pytest.fixture(scope="module", autouse=True)
def code(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    (folder / "attacked.py").write_text(CODE)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def train(tmp_path):
    """The model that a node is sent, and the one that it hands in."""

    def train(net=None, data=None, epochs=1, dp=None):
        start = load("attacked.py:Net")(**(net or {})).state_dict()
        save(tmp_path / "base.safetensors", start)
        task = Task(
            key=TaskKey.parse("r0001/alice/a1"),
            seed=7,
            model="attacked.py:Net",
            model_args=net or {},
            data="attacked.py:Data",
            data_args=data or {},
            trainer={"accelerator": "cpu", "devices": 1, "max_epochs": epochs},
            models={"base": digest(tmp_path / "base.safetensors")},
            threads=1,
            privacy={"differential_privacy": {"mode": "local", "adaptive": None, **dp}} if dp else {},
        )
        perform(task, {"base": tmp_path / "base.safetensors"}, tmp_path, lambda _: None, 1)
        return start, {name: tensor.clone() for name, tensor in Weights.open(tmp_path / "update.safetensors").items()}

    return train


def read_out(update, start) -> np.ndarray:
    """The image behind an update of a linear layer: of each class the way of its weights over that of its bias."""
    weight = (update["layers.0.weight"] - start["layers.0.weight"]).double().numpy()
    bias = (update["layers.0.bias"] - start["layers.0.bias"]).double().numpy()
    return weight[np.abs(bias).argmax()] / bias[np.abs(bias).argmax()]


def likeness(found: np.ndarray, number: int) -> float:
    """The correlation of what was read out with the image of that number."""
    return float(np.corrcoef(found, load_digits().data[number])[0, 1])


def of_nodes(train) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """The updates of nodes with one image each, clipped."""
    both = [train(data={"first": number}) for number in range(NODES)]
    return both[0][0], [dict(clipped(update, start, CLIP)) for start, update in both]


def as_contributions(updates) -> list[Contribution]:
    return [Contribution(name=f"n{i}", weight=1, weights=each) for i, each in enumerate(updates)]


def mean_of(start, updates, noise):
    dp = DifferentialPrivacy(mode="central", noise=noise, clip=CLIP)
    rule = private(build(Named(name="fedavg")), dp, expected=len(updates))
    found = rule.aggregate(start, as_contributions(updates), {}).model
    return {name: found[name] for name in start}


# An image out of an update


def test_an_update_as_it_is_shows_the_image_that_made_it(train):
    start, update = train(data={"first": 3})
    found = likeness(read_out(update, start), 3)
    print(f"an open update: {found:.4f}")
    assert found > 0.999


def test_of_a_sum_of_updates_no_image_can_be_read(train):
    start, updates = of_nodes(train)
    found = read_out(mean_of(start, updates, 0.0), start)
    alike = [likeness(found, number) for number in range(NODES)]
    print(f"a sum of {NODES}: at best {max(alike):.2f}")
    assert max(alike) < 0.95


def best_of(alike: list[float]) -> float:
    """The mean over several tries, since noise is another each time."""
    return float(np.mean([abs(each) for each in alike]))


def test_central_noise_hides_the_images_behind_a_mean(train):
    start, updates = of_nodes(train)
    tries = [read_out(mean_of(start, updates, NOISE), start) for _ in range(20)]
    found = best_of([max(abs(likeness(each, number)) for number in range(NODES)) for each in tries])
    print(f"a mean of {NODES} with central noise: at best {found:.2f}")
    assert found < 0.6


def test_a_nodes_part_of_distributed_noise_hides_its_image_before_any_sum(train):
    """Even where all masks were broken: each node's noise is a tenth of the variance of all."""
    start, updates = of_nodes(train)
    scale = Scale.of(8.0, NODES)
    count = sum(tensor.numel() for tensor in start.values())
    std = distributed.deviation(NOISE, CLIP, step=scale.step, count=count, least=NODES)
    alike = []
    for number in range(NODES):
        way = torch.cat([(updates[number][name] - start[name]).flatten() for name in sorted(start)])
        row, _ = scale.encode(way.numpy())
        distributed.noisy(row, std, Generator())
        seen = torch.from_numpy(scale.decode(row)).float().split([start[name].numel() for name in sorted(start)])
        moved = {name: start[name] + one.view_as(start[name]) for name, one in zip(sorted(start), seen, strict=True)}
        alike.append(likeness(read_out(moved, start), number))
    print(f"one node's part of distributed noise: {best_of(alike):.2f}")
    assert best_of(alike) < 0.6


def test_local_noise_hides_the_image_on_its_own_node(train):
    alike = []
    for number in range(NODES):
        start, update = train(data={"first": number}, dp={"noise": NOISE, "clip": CLIP, "delta": 1e-5, "epsilon": None})
        alike.append(likeness(read_out(update, start), number))
    print(f"local noise: {best_of(alike):.2f}")
    assert best_of(alike) < 0.5


# Members told from others


def advantage(model, count: int) -> float:
    """How much more often a member than another has a loss below the best threshold, over twice `count` examples."""
    net = load("attacked.py:Net")(hidden=64)
    net.load_state_dict(model)
    x, y = (torch.tensor(each) for each in load_digits(return_X_y=True))
    x = (x / 16).float()
    drawn = torch.randint(10, y.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        losses = cross_entropy(net.layers(x[: 2 * count]), drawn[: 2 * count], reduction="none").numpy()
    members, others = losses[:count], losses[count:]
    thresholds = np.quantile(losses, np.linspace(0, 1, 101))
    return float(max((members <= each).mean() - (others <= each).mean() for each in thresholds))


def test_members_of_a_training_are_told_from_others_unless_it_has_noise(train):
    """Labels drawn by chance can only be learnt by heart, so that whoever knows one was there."""
    count = 100
    data = {"count": count, "batch": 20, "labels": 5}
    _, open_model = train({"hidden": 64, "lr": 0.5}, data, epochs=150)
    noisy = {"noise": 4.0, "clip": 1.0, "delta": 1e-3, "epsilon": None}  # an epsilon of 1.42
    _, noisy_model = train({"hidden": 64, "lr": 0.5}, data, epochs=20, dp=noisy)
    found = [advantage(each, count) for each in (open_model, noisy_model)]
    print(f"members told from others: {found[0]:.2f} openly, {found[1]:.2f} with noise")
    assert found[0] > 0.8
    assert found[1] < 0.35
