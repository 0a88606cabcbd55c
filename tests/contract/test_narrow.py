"""`scaffold` over a model of half precision: real trainings and files over many rounds, in which no control is lost."""

import sys

import pytest
import torch

from fedctl.aggregation import aggregate_round
from fedctl.durable import digest
from fedctl.federation import Named
from fedctl.node.trainers.lightning import perform
from fedctl.records import MEMORY, Task, TaskKey
from fedctl.soundness import check_update
from fedctl.strategies import build
from fedctl.weights import Weights, save

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
CODE = """
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

class Narrow(pl.LightningModule):
    def __init__(self, dtype):
        super().__init__()
        self.x = torch.nn.Parameter(torch.zeros(1, dtype=getattr(torch, dtype)))

    def training_step(self, batch, index):
        return (self.x * batch[0].to(self.x.dtype)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)

class Slope(pl.LightningDataModule):
    def __init__(self, slope):
        super().__init__()
        self.rows = TensorDataset(torch.tensor([slope]))

    def train_dataloader(self):
        return DataLoader(self.rows)
"""
NODES = 1024
"""How many there are; one of them is asked, again and again."""


@pytest.fixture(autouse=True)
def code(tmp_path, monkeypatch):
    (tmp_path / "narrow_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("narrow_code", None)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_controls_that_are_small_beside_what_is_remembered_add_up(tmp_path, dtype):
    """The gradient is the slope: it grows by 1/8 a round, of which a 1024th is too little for a narrow c of 1/2."""
    strategy = build(Named(name="scaffold", options={"nodes": NODES}))
    narrow = getattr(torch, dtype)
    model, memory, last = tmp_path / "0.safetensors", tmp_path / "c0.safetensors", None
    save(model, {"x": torch.zeros(1, dtype=narrow)})
    save(memory, {"x": torch.full((1,), 0.5)})
    rounds = 16
    for number in range(1, rounds + 1):
        models = {"base": model, MEMORY: memory}
        task = Task(
            key=TaskKey.parse(f"r{number:04d}/alice/a1"),
            seed=7,
            model="narrow_code.py:Narrow",
            model_args={"dtype": dtype},
            data="narrow_code.py:Slope",
            data_args={"slope": number / 8},
            trainer={"accelerator": "cpu", "devices": 1, "max_epochs": 1},
            local={"name": "scaffold"},
            threads=1,
            models={label: digest(path) for label, path in models.items()},
            kept=last,
        )
        folder = tmp_path / task.key.folder
        folder.mkdir()
        perform(task, models, folder, lambda _: None, 1)
        update = folder / "update.safetensors"
        assert {tensor.dtype for tensor in Weights.open(update).values()} == {narrow}
        check_update(Weights.open(update), Weights.open(model), controls=True, farthest=1000.0)
        files = {"model_out": tmp_path / f"{number}.safetensors", "memory_out": tmp_path / f"c{number}.safetensors"}
        aggregate_round(model, {"alice": (update, 1)}, memory=memory, strategy=strategy, **files)
        model, memory, last = files["model_out"], files["memory_out"], task.key
    c = Weights.open(memory)["x"]
    assert c.dtype == torch.float32
    assert c.item() == pytest.approx(0.5 + rounds / 8 / NODES, rel=1e-6)
