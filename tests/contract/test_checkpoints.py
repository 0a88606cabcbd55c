"""Lightning takes our checkpoints: under both of its names, with and without saved hyper-parameters."""

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, sys
from pathlib import Path

import torch

from fedctl.weights import Weights, save, save_checkpoint

lightning = importlib.import_module(sys.argv[1])
folder = Path(sys.argv[2])


class Forgetful(lightning.LightningModule):
    def __init__(self, width=3, lr=0.1):
        super().__init__()
        self.lr = lr
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.BatchNorm1d(width))

    def test_step(self, batch, index):
        self.log("mean", self.layers(batch).mean())


class Saving(Forgetful):
    def __init__(self, width=3, lr=0.1):
        super().__init__(width, lr)
        self.save_hyperparameters()


quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
for kind in (Forgetful, Saving):
    net = kind(width=5, lr=0.5)
    save(folder / "m.safetensors", net.state_dict())
    save_checkpoint(folder / "m.ckpt", Weights.open(folder / "m.safetensors"), {"width": 5, "lr": 0.5})
    loaded = kind.load_from_checkpoint(folder / "m.ckpt", weights_only=True)
    assert loaded.lr == 0.5
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in net.state_dict().items())
    trainer = lightning.Trainer(**quiet)
    rows = torch.utils.data.DataLoader(torch.randn(4, 2), batch_size=4)
    trainer.test(kind(width=5), rows, ckpt_path=folder / "m.ckpt", verbose=False)
"""


@pytest.mark.parametrize("module", ["lightning.pytorch", "pytorch_lightning"])
def test_lightning_loads_what_we_save(tmp_path, module):
    argv = [sys.executable, "-c", PROGRAM, module, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
