"""What a training leaves on its node and the next one goes on with; and what is refused before anything is trained."""

import sys
from pathlib import Path

import pytest
import torch

from fedctl.durable import digest
from fedctl.errors import ConfigError
from fedctl.node import keep
from fedctl.node.keep import Kept
from fedctl.node.trainers.lightning import perform
from fedctl.records import REST, Task, TaskKey
from fedctl.share import Share
from fedctl.weights import Weights, save

CODE = """
import numpy as np
import pytorch_lightning as pl
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

class Net(pl.LightningModule):
    def __init__(self, lr=0.1, optimizer="SGD", options=None, schedule=None, wide=False, tied=False, numpy=False):
        super().__init__()
        self.kind, self.schedule = optimizer, schedule
        self.options = {"lr": np.float64(lr) if numpy else lr, **(options or {})}
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh())
        self.head = torch.nn.Linear(8, 3 if wide else 2)
        if tied:
            self.twin = self.head.weight

    def training_step(self, batch, index):
        loss = cross_entropy(self.head(self.body(batch[0])), batch[1])
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch, index):
        self.log("val_acc", (self.head(self.body(batch[0])).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        optimizer = getattr(torch.optim, self.kind)(self.parameters(), **self.options)
        match self.schedule:
            case None:
                return optimizer
            case "plateau":
                made = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
                return [optimizer], [{"scheduler": made, "monitor": "train_loss_epoch"}]
            case "lambda":
                return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)]
            case "cosine":
                return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)]

class Rows(pl.LightningDataModule):
    def __init__(self, sign=1):
        super().__init__()
        rows = torch.randn(40, 4, generator=torch.Generator().manual_seed(3))
        self.rows = TensorDataset(rows, (sign * rows[:, 0] > 0).long())

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=8)

    def val_dataloader(self):
        return DataLoader(self.rows, batch_size=40)
"""
COMMON = {"seed": 7, "model": "keeping_code.py:Net", "data": "keeping_code.py:Rows", "data_args": {}}
HEADS = Share(kept=("head.*",)).to_json()
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module", autouse=True)
def code(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    (folder / "keeping_code.py").write_text(CODE)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def do(tmp_path):
    """Do a task of a node in the run's folder `tmp_path`, as its worker does."""

    def do(key, models=None, **fields):
        key = TaskKey.parse(key)
        folder = tmp_path / key.folder
        folder.mkdir()
        blobs = {label: digest(path) for label, path in (models or {}).items()}
        trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, **fields.pop("trainer", {})}
        given = {**COMMON, "model_args": {}, "trainer": trainer, "models": blobs, **fields}
        kept = given.pop("kept", None)
        task = Task(key=key, kept=TaskKey.parse(kept) if kept else None, **given)
        return perform(task, models or {}, folder, lambda _: None, 1)

    return do


@pytest.fixture
def first(do, tmp_path):
    """The first model, divided as a coordinator does it where it is not wholly shared."""

    def first(share=None, **fields):
        do("r0000/coordinator/i1", trainer={}, share=share or {}, **fields)
        made = Weights.open(tmp_path / "r0000-coordinator-i1/update.safetensors")
        home = [name for name in made if share and name.startswith("head.")]
        models = {"base": tmp_path / "base.safetensors"}
        save(models["base"], {name: tensor for name, tensor in made.items() if name not in home})
        if home:
            models[REST] = tmp_path / "rest.safetensors"
            save(models[REST], {name: made[name] for name in home})
        return models

    return first


def update(run: Path, key: str) -> dict[str, torch.Tensor]:
    return dict(Weights.open(run / TaskKey.parse(key).folder / "update.safetensors"))


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Optimizers


@pytest.mark.parametrize("schedule", [None, "plateau", "lambda", "cosine"])
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_optimizers_that_go_on_make_trainings_one_after_the_other_a_long_one(do, first, tmp_path, optimizer, schedule):
    """The same rows in the same order: three trainings of an epoch are one of three, moments, rates and all."""
    options = {"momentum": 0.9} if optimizer == "SGD" else {}
    model_args = {"optimizer": optimizer, "options": options, "schedule": schedule}
    models = first(model_args=model_args)
    do("r0009/long/a1", models, model_args=model_args, trainer={"max_epochs": 3})
    ends = {}
    for node, reset in (("going", False), ("anew", True)):
        start, kept = models, None
        for number in (1, 2, 3):
            key = f"r{number:04d}/{node}/a1"
            done = do(key, start, model_args=model_args, reset_optimizer=reset, kept=kept)
            assert not done.fresh
            start, kept = {"base": tmp_path / TaskKey.parse(key).folder / "update.safetensors"}, key
        ends[node] = update(tmp_path, kept)
    assert same(ends["going"], update(tmp_path, "r0009/long/a1"))
    assert not same(ends["anew"], ends["going"])


def test_states_that_nobody_could_read_again_are_refused(do, first):
    models = first(model_args={"numpy": True})
    do("r0001/n/a1", models, model_args={"numpy": True})
    with pytest.raises(ConfigError, match="cannot keep the state of an optimizer") as refused:
        do("r0001/n/a2", models, model_args={"numpy": True}, reset_optimizer=False)
    assert "plain numbers" in refused.value.hint


def test_states_that_are_gone_cost_nothing_but_themselves(do, first, tmp_path):
    models = first(share=HEADS)
    given = {"share": HEADS, "reset_optimizer": False}
    do("r0001/n/a1", models, **given)
    (tmp_path / "r0001-n-a1" / keep.OPTIMIZERS).write_bytes(b"torn")
    again = do("r0002/n/a1", models, kept="r0001/n/a1", **given)
    assert again.fresh
    kept, before = (keep.load(tmp_path, task(f"r000{number}/n/a1", **given)) for number in (2, 1))
    assert before.optimizers is None
    assert not same(kept.private, before.private), "the head has been trained on"
    do("r0002/n/a2", models, **given)
    assert not same(kept.private, keep.load(tmp_path, task("r0002/n/a2", **given)).private), "and was not begun anew"


def task(kept, **fields):
    key = TaskKey.parse(kept)
    return Task(key=key, kept=key, **{**COMMON, "model_args": {}, "trainer": {}, **fields})


# What is left, and for how long


def test_only_what_was_trained_here_is_kept_of_what_stays(do, first, tmp_path):
    do("r0001/n/a1", first(share=HEADS), share=HEADS)
    assert keep.load(tmp_path, task("r0001/n/a1", share=HEADS)).private.keys() == {"head.weight", "head.bias"}
    assert update(tmp_path, "r0001/n/a1").keys().isdisjoint({"head.weight", "head.bias"})


def test_a_training_removes_what_others_of_its_node_have_left_but_for_its_own_and_the_one_it_names(tmp_path):
    for key in ("r0001/a/a1", "r0002/a/a1", "r0002/a/a2", "r0003/a/a1", "r0001/a-a1/a1", "r0001/b/a1"):
        folder = tmp_path / TaskKey.parse(key).folder
        folder.mkdir()
        keep.save(folder, Kept(optimizers={"states": []}))
        (folder / f"{keep.STATE}.tmp-7").touch()
    key, kept = TaskKey.parse("r0003/a/a1"), TaskKey.parse("r0002/a/a1")
    keep.sweep(tmp_path, Task(key=key, kept=kept, share=HEADS, **COMMON, model_args={}, trainer={}))
    left = {path.parent.name for path in tmp_path.glob(f"*/{keep.STATE}*")}
    assert left == {"r0003-a-a1", "r0002-a-a1", "r0001-a-a1-a1", "r0001-b-a1"}
    assert {path.parent.name for path in tmp_path.glob(f"*/{keep.OPTIMIZERS}")} == left


def test_a_training_alone_leaves_what_the_node_keeps(do, first, tmp_path):
    models = first()
    do("r0001/n/a1", models, local={"name": "ditto"})
    do("r0000/n/s1", models)
    assert (tmp_path / "r0001-n-a1" / keep.STATE).exists()


def test_fine_tuning_goes_on_from_the_nodes_own_tensors_and_leaves_a_checkpoint(do, first, tmp_path):
    models = first(share=HEADS)
    given = {"share": HEADS, "data_args": {"sign": -1}}
    do("r0001/n/a1", models, trainer={"max_epochs": 8}, **given)
    scored = {"global": models["base"], REST: models[REST]}
    lr = {"lr": 1e-9}
    done = do("r0001/n/f1", scored, kept="r0001/n/a1", finetune=lr, **given)
    assert done.update is None
    assert done.scores["personal"].metrics["val_acc"] > done.scores["global"].metrics["val_acc"] + 0.1
    own = torch.load(tmp_path / "personal/n.ckpt", weights_only=True)
    assert own["hyper_parameters"] == lr
    kept = keep.load(tmp_path, task("r0001/n/a1", **given)).private
    assert torch.allclose(own["state_dict"]["head.weight"], kept["head.weight"], atol=1e-6)


# What could only fail later


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"finetune": {"lrr": 0.1}}, "unexpected keyword argument 'lrr'"),
        ({"finetune": {"wide": True}}, "they make a model of other tensors"),
        ({"share": Share(kept=("twin",)).to_json(), "model_args": {"tied": True}}, "are one tensor"),
        ({"local": {"name": "phases", "phases": [{"train": ["haed.*"], "epochs": 1}]}}, "no parameter .* 'haed.*'"),
        ({"local": {"name": "moon", "features": "bdoy"}}, "the model has no submodule 'bdoy'"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_anything_is_trained(do, fields, said):
    with pytest.raises(ConfigError, match=said):
        do("r0000/coordinator/i1", trainer={}, **fields)


def test_tied_tensors_may_be_shared_by_both_names_or_none(do):
    for number, patterns in enumerate((["twin", "head.weight"], ["body.*"])):
        share = Share(kept=tuple(patterns)).to_json()
        done = do(f"r0000/coordinator/i{number + 1}", trainer={}, share=share, model_args={"tied": True})
        assert done.error is None
