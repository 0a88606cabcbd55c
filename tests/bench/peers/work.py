"""What every peer trains: a network of 206,922 parameters, on its site's share of 4,000 images of MNIST.

This file is copied into the code of each of them. It asks for torch and numpy alone.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

LR = 0.05
BATCH = 32


def network() -> nn.Sequential:
    """Two convolutions and two dense layers: (N, 1, 28, 28) in, scores (N, 10) out."""
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def optimizer(model: nn.Module, lr: float = LR) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def batches(file: str | Path, site: int) -> DataLoader:
    """A site's images, in a new order each epoch."""
    return DataLoader(images(file, str(site)), batch_size=BATCH, shuffle=True)


def images(file: str | Path, whose: str) -> TensorDataset:
    """The images of a site, by its number, or those of the `test`."""
    with np.load(file) as held:
        return TensorDataset(torch.from_numpy(held[f"x-{whose}"]), torch.from_numpy(held[f"y-{whose}"]))
