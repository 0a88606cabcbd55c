"""What stays with a node: tensors that are not shared, a rule's own, an optimizer's state, a model of its own."""

import os
import shutil
import signal

import pytest
import torch

from fedctl.weights import Weights
from tests.e2e.conftest import Place

FEDERATION = """
name: personal
rounds: 3
task: {model: model.py:Net, data: data.py:Rows, trainer: {max_epochs: 1}, monitor: {metric: val_acc, mode: max}}
schedule: {quorum: 1.0}
defaults: {accelerator: cpu, threads: 1, slots: 2}
nodes:
  - {name: left, data: {sign: 1}}
  - {name: right, data: {sign: -1}}
"""
MODEL = """
import os
import time

import pytorch_lightning as pl
import torch
from torch.nn.functional import cross_entropy

class Net(pl.LightningModule):
    def __init__(self, lr=0.1, optimizer="SGD", momentum=0.9, whim=False, pace=0.0):
        super().__init__()
        self.lr, self.kind, self.momentum, self.pace = lr, optimizer, momentum, pace
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh())
        self.head = torch.nn.Linear(8, 2)
        if whim:
            self.register_buffer("whim", torch.frombuffer(bytearray(os.urandom(8)), dtype=torch.uint8).clone())

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, index):
        time.sleep(self.pace)
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        kind = getattr(torch.optim, self.kind)
        options = {"momentum": self.momentum} if self.kind == "SGD" else {}
        optimizer = kind([each for each in self.parameters() if each.requires_grad], self.lr, **options)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)]
"""
DATA = """
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

class Rows(pl.LightningDataModule):
    '''The nodes disagree about what is which class, so that no one model suits them all.'''

    def __init__(self, sign):
        super().__init__()
        rows = torch.randn(120, 4, generator=torch.Generator().manual_seed(3))
        labels = (sign * rows[:, 0] > 0).long()
        self.train, self.val = TensorDataset(rows[:80], labels[:80]), TensorDataset(rows[80:], labels[80:])

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=8)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=40)
"""
HEADS = 'share={except: ["head.*"]}'


@pytest.fixture(scope="module")
def place(make_place) -> Place:
    place = make_place("blank")
    for name, text in {"fed.yaml": FEDERATION, "model.py": MODEL, "data.py": DATA}.items():
        (place.folder / name).write_text(text)
    return place


def launch(place: Place, run: str, *settings: str) -> None:
    place.fedctl("launch", "--run", run, *(word for setting in settings for word in ("--set", setting)))


def weights(place: Place, run: str, file: str) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in Weights.open(place.folder / "runs" / run / file).items()}


def kept_by(place: Place, run: str, node: str) -> dict[str, dict[str, torch.Tensor]]:
    """What a node keeps, by the training that left it."""
    files = sorted((place.home / "runs" / run).glob(f"*-{node}-*/state.safetensors"))
    return {file.parent.name: {name: one.clone() for name, one in Weights.open(file).items()} for file in files}


def of_kind(place: Place, run: str, kind: str) -> dict[str, dict]:
    return {event["task"]: event for event in place.events(run) if event["event"] == kind}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def heads(place) -> Place:
    """With a run in which each node has a head of its own."""
    launch(place, "heads", HEADS)
    return place


def test_what_is_not_shared_stays_at_home(heads):
    first, last = weights(heads, "heads", "rounds/0000/rest.safetensors"), weights(heads, "heads", "model.safetensors")
    assert first.keys() == {"head.weight", "head.bias"}
    shared = weights(heads, "heads", "rounds/0003/model.safetensors")
    assert shared.keys().isdisjoint(first)
    assert same(last, {**first, **shared}), "the whole model has the rest as it was at first"
    for update in (heads.folder / "runs/heads/rounds").glob("*/updates/*"):
        assert Weights.open(update).keys() == shared.keys()
    checkpoint = torch.load(heads.folder / "runs/heads/model.ckpt", weights_only=True)
    assert same(checkpoint["state_dict"], last)


def test_a_node_keeps_what_its_next_training_goes_on_with_and_no_more(heads):
    for node in ("left", "right"):
        kept = kept_by(heads, "heads", node)
        assert kept["r0003-" + node + "-a1"].keys() == {"private/head.weight", "private/head.bias"}
        assert kept.keys() <= {f"r0002-{node}-a1", f"r0003-{node}-a1"}
    one, other = (kept_by(heads, "heads", node)[f"r0003-{node}-a1"] for node in ("left", "right"))
    assert not same(one, other)


def test_each_node_scores_its_own_model_beside_the_global_one(heads):
    scored = of_kind(heads, "heads", "ModelEvaluated")
    assert scored["r0000/left/e1"]["scores"].keys() == {"global"}
    own = [scored[f"r0003/{node}/e1"]["scores"]["personal"]["metrics"]["val_acc"] for node in ("left", "right")]
    of_all = [scored[f"r0003/{node}/e1"]["scores"]["global"]["metrics"]["val_acc"] for node in ("left", "right")]
    assert min(own) > 0.8
    assert sum(of_all) == pytest.approx(1.0, abs=0.05), "what is right on one node is wrong on the other"
    personal = heads.json("status", "heads")["personal"]
    assert personal["metrics"]["personal"]["val_acc"] == pytest.approx(sum(own) / 2)
    assert personal["worst"]["personal"]["metrics"]["val_acc"] == min(own)


@pytest.mark.parametrize(("whim", "goes"), [(False, False), (True, True)])
def test_the_rest_is_sent_only_to_nodes_that_cannot_build_it(place, whim, goes):
    """A seed of its own: what an earlier run has brought there would not be sent again."""
    run = f"sent{whim}"
    launch(
        place,
        run,
        'share={only: ["body.*"]}',
        "rounds=1",
        f"seed={11 + whim}",
        f"task.model_args={{whim: {whim}}}".lower(),
    )
    model, rest = (
        (place.folder / "runs" / run / "rounds/0000" / file).stat().st_size
        for file in ("model.safetensors", "rest.safetensors")
    )
    kinds = ("UpdateReceived", "ModelEvaluated")
    sent = sum(event["bytes"]["sent"] for kind in kinds for event in of_kind(place, run, kind).values())
    assert sent == 2 * model + (rest if goes else 0), "the first model and the last, once to the machine"


@pytest.mark.parametrize(
    ("share", "said"),
    [
        ('{except: ["haed.*"]}', "no tensor of the model matches `haed.*`"),
        ('{except: ["*"]}', "no tensor of the model is left to share"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(place, share, said):
    refused = place.fedctl("launch", "--run", "refused", "--set", f"share={share}", code=3)
    assert said in refused.stderr
    assert "body.0.weight" in refused.stderr
    assert not (place.folder / "runs/refused").exists()


def test_a_node_whose_state_is_gone_begins_anew_and_says_so(place):
    place.fedctl("launch", "--run", "gone", "--hold", "--set", HEADS)
    place.fedctl("aggregate", "gone", "--commit")
    shutil.rmtree(place.home / "runs/gone/r0001-left-a1")
    place.fedctl("launch", "--resume", "gone", "--hold")
    updates = of_kind(place, "gone", "UpdateReceived")
    assert {task: event["fresh"] for task, event in updates.items()} == {
        "r0001/left/a1": False,
        "r0001/right/a1": False,
        "r0002/left/a1": True,
        "r0002/right/a1": False,
    }


def test_fine_tuning_gives_each_node_a_model_of_its_own(place):
    launch(place, "tuned", "finetune={epochs: 4, model_args: {lr: 0.05}}")
    assert place.events("tuned")[-1]["event"] == "RunFinished"
    scored = of_kind(place, "tuned", "ModelEvaluated")
    for node in ("left", "right"):
        scores = scored[f"r0003/{node}/f1"]["scores"]
        assert scores["global"] == scored[f"r0003/{node}/e1"]["scores"]["global"]
        assert scores["personal"]["metrics"]["val_acc"] > 0.85
        own = torch.load(place.home / f"runs/tuned/personal/{node}.ckpt", weights_only=True)
        assert own["hyper_parameters"]["lr"] == 0.05
        assert own["state_dict"].keys() == weights(place, "tuned", "model.safetensors").keys()
    personal = place.json("status", "tuned")["personal"]
    assert personal["finetuned"] is True
    assert {row["node"] for row in personal["nodes"]} == {"left", "right"}


def test_a_run_that_dies_goes_on_with_what_its_nodes_kept(place):
    """Killed as round 2 trains, coordinator, workers and all, it ends with the bits of a calm one, on nodes too."""
    kept = (HEADS, "task.reset_optimizer=false", "local={name: ditto, lambda: 0.5}")
    settings = [*kept, "task.model_args.pace=0.05"]
    calm, run = "calm-ditto", "dies-ditto"
    launch(place, calm, *settings)
    with place.start("launch", "--run", run, *(word for setting in settings for word in ("--set", setting))) as process:
        place.wait_for(lambda events: any(e.get("task") == "r0002/left/a1" for e in events), run)
        for pid in {process.pid, *place.processes()}:
            os.kill(pid, signal.SIGKILL)
    place.fedctl("launch", "--resume", run)
    for file in ("model.safetensors", "rounds/0002/updates/left.safetensors", "rounds/0003/updates/right.safetensors"):
        assert same(weights(place, run, file), weights(place, calm, file))
    for node in ("left", "right"):
        lived, died = ([*kept_by(place, one, node).values()][-1] for one in (calm, run))
        assert lived
        assert same(lived, died)
    assert not any(event["fresh"] for event in of_kind(place, run, "UpdateReceived").values())


def test_a_round_of_nodes_that_keep_something_for_a_strategy_is_closed_by_that_strategy_alone(place):
    place.fedctl("launch", "--run", "committed", "--hold", "--set", "strategy={name: feddyn, alpha: 0.5}")
    for other in (["--strategy", "fedavg"], ["--option", "alpha=0.1"]):
        refused = place.fedctl("aggregate", "committed", "--commit", *other, code=2)
        assert "nothing else may close its rounds" in refused.stderr
    place.fedctl("aggregate", "committed", "--strategy", "fedavg")
    place.fedctl("aggregate", "committed", "--commit")


def test_what_an_aggregate_writes_of_a_run_is_a_whole_model(heads):
    heads.fedctl("aggregate", "heads", "--strategy", "median", "-o", "median.ckpt", "--force")
    written = torch.load(heads.folder / "median.ckpt", weights_only=True)["state_dict"]
    assert written.keys() == weights(heads, "heads", "model.safetensors").keys()
    assert torch.equal(written["head.weight"], weights(heads, "heads", "rounds/0000/rest.safetensors")["head.weight"])
