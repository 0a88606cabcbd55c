"""The FedProx paper's synthetic federation: its data, and rounds of it with the nodes' SGD in plain NumPy.

A run takes some 1.6 million steps of ten rows, each of which would cost Lightning a hundred times its arithmetic. What
is NumPy here is the nodes' training and nothing else: the next model is made by fedctl's own strategy.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks, MLSys 2020.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedctl.federation import Named
from fedctl.strategies import Contribution, build

Array = NDArray[np.float64]

DEVICES, FEATURES, CLASSES = 30, 60, 10
COHORT, EPOCHS, BATCH, LR = 10, 20, 10, 0.01


@dataclass(frozen=True, slots=True)
class Device:
    """Rows of shape (rows, FEATURES + 1), whose last column is ones, and their classes; a tenth is for testing."""

    x: Array
    y: NDArray[np.intp]
    test_x: Array
    test_y: NDArray[np.intp]


def devices(seed: int, *, is_iid: bool = False) -> list[Device]:
    """Synthetic(1, 1), or the IID set: each device has a model of its own, and rows around a centre of its own."""
    rng = np.random.RandomState(seed)
    sizes = rng.lognormal(4, 2, DEVICES).astype(int) + 50
    scale = np.arange(1, FEATURES + 1) ** -0.6
    model_means, data_means = rng.normal(0, 1, DEVICES), rng.normal(0, 1, DEVICES)
    common = rng.normal(0, 1, (FEATURES + 1, CLASSES))
    found = []
    for size, model_mean, data_mean in zip(sizes, model_means, data_means, strict=True):
        truth = common if is_iid else rng.normal(model_mean, 1, (FEATURES + 1, CLASSES))
        centre = 0 if is_iid else rng.normal(data_mean, 1, FEATURES)
        x = np.column_stack([centre + scale * rng.normal(0, 1, (size, FEATURES)), np.ones(size)])
        y = (x @ truth).argmax(axis=1)
        cut = int(0.9 * size)
        found.append(Device(x[:cut], y[:cut], x[cut:], y[cut:]))
    return found


def accuracies(
    federation: Sequence[Device], *, mu: float, stragglers: float, drop: bool, rounds: int = 200
) -> Iterator[float]:
    """The accuracy on all devices' test rows after each round; selections are the same for the same arguments.

    Of each cohort a share of `stragglers` has time for 1 to 19 epochs of 20; what it did is used, or with `drop` lost.
    """
    x = np.concatenate([each.test_x for each in federation])
    y = np.concatenate([each.test_y for each in federation])
    weights = np.zeros((FEATURES + 1, CLASSES))
    for number in range(rounds):
        rng = np.random.RandomState(number)
        cohort = rng.choice(len(federation), COHORT, replace=False)
        slow = set(rng.choice(cohort, round(COHORT * stragglers), replace=False))
        epochs = {each: int(rng.randint(1, EPOCHS)) if each in slow else EPOCHS for each in cohort}
        updates = {
            f"device-{each:02d}": (len(federation[each].y), trained(weights, federation[each], epochs[each], mu, rng))
            for each in cohort
            if not (drop and each in slow)
        }
        weights = aggregated(weights, updates)
        yield float(((x @ weights).argmax(axis=1) == y).mean())


def trained(
    start: Array, device: Device, epochs: int, mu: float, rng: np.random.RandomState | None = None, lr: float = LR
) -> Array:
    """Softmax regression by SGD from `start`, with FedProx's term; without `rng` the rows keep their order."""
    weights, pull = start.copy(), lr * mu * start
    targets = np.eye(CLASSES)[device.y]
    gradient = np.empty_like(weights)
    for _ in range(epochs):
        order = np.arange(len(targets)) if rng is None else rng.permutation(len(targets))
        x, wanted = device.x[order], targets[order]
        for at in range(0, len(x), BATCH):
            rows = x[at : at + BATCH]
            error = rows.dot(weights)
            error -= np.maximum.reduce(error, axis=1, keepdims=True)
            np.exp(error, out=error)
            error /= np.add.reduce(error, axis=1, keepdims=True)
            error -= wanted[at : at + BATCH]
            error *= lr / len(rows)
            np.dot(rows.T, error, out=gradient)
            if mu:
                weights *= 1 - lr * mu
                weights += pull
            weights -= gradient
    return weights


def aggregated(start: Array, updates: dict[str, tuple[int, Array]]) -> Array:
    """The next model, as fedctl's `fedavg` makes it of updates and their examples."""
    contributions = [
        Contribution(name=name, weight=examples, weights=tensors(weights), steps=1)
        for name, (examples, weights) in updates.items()
    ]
    model = build(Named(name="fedavg")).aggregate(tensors(start), contributions, {}).model
    return np.vstack([model["weight"].numpy().T, model["bias"].numpy()])


def tensors(weights: Array) -> dict[str, torch.Tensor]:
    """As a torch.nn.Linear has them."""
    return {"weight": torch.from_numpy(weights[:-1].T.copy()), "bias": torch.from_numpy(weights[-1].copy())}
