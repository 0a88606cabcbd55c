"""Training with noise on every step: as Opacus' own engine and a plain loop do it, and nothing that goes around it."""

import json
import sys

import numpy as np
import pytest
import torch
from opacus import PrivacyEngine
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import _global_optimizer_post_hooks
from torch.utils.data import DataLoader

from fedctl.dp.accounting import epsilon
from fedctl.dp.noise import Generator
from fedctl.durable import digest
from fedctl.errors import ConfigError
from fedctl.node.trainers import private
from fedctl.node.trainers.code import load
from fedctl.node.trainers.lightning import perform
from fedctl.node.trainers.private import Batches
from fedctl.records import Task, TaskKey
from fedctl.weights import Weights, save

CODE = """
import pytorch_lightning as pl
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

class Counting(torch.nn.Linear):
    def __init__(self):
        super().__init__(5, 5)
        self.register_buffer("count", torch.zeros(()))

class Net(pl.LightningModule):
    def __init__(self, kind="plain", optimizer="SGD"):
        super().__init__()
        torch.manual_seed(3)
        middle = {
            "norm": torch.nn.BatchNorm1d(5),
            "bare norm": torch.nn.BatchNorm1d(5, affine=False),
            "group": torch.nn.GroupNorm(1, 5),
            "counting": Counting(),
        }.get(kind, torch.nn.Tanh())
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 5), middle)
        self.head = torch.nn.Linear(5, 2)
        self.kind, self.optimizer = kind, optimizer
        if kind != "bare":
            self.register_buffer("seen", torch.zeros(4))
        self.automatic_optimization = kind != "manual"
        if kind == "spare":
            self.spare = torch.nn.Linear(4, 5)
        if kind == "bare":
            self.scale = torch.nn.Parameter(torch.ones(5))
        if kind == "words":
            self.words = torch.nn.Embedding(3, 4, sparse=True)
        if kind == "recurrent":
            self.memory = torch.nn.GRU(4, 4, batch_first=True)
        if kind == "frozen":
            self.body.requires_grad_(False)

    def training_step(self, batch, index):
        x, y = batch
        assert len(x), "no batch is empty"
        if self.kind == "bare":
            return cross_entropy(self.head(self.body(x) * self.scale), y)
        self.seen += x.detach().mean(0)
        if self.kind == "skipping":
            return None
        if self.kind == "folded":
            return cross_entropy(self.head(self.body(x.repeat(2, 1))), y.repeat(2))
        loss = cross_entropy(self.head(self.body(x)), y)
        if self.kind == "beside":
            self.head.weight.grad = torch.ones_like(self.head.weight)
            self.others.step()
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self):
        if self.kind == "beside":
            self.others = torch.optim.SGD(self.head.parameters(), 0.1)
        return getattr(torch.optim, self.optimizer)(self.parameters(), lr=0.5)

class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(4), torch.tensor(1)

class Data(pl.LightningDataModule):
    def __init__(self, kind="plain", count=40, batch=8, workers=0):
        super().__init__()
        x = torch.randn(count, 4, generator=torch.Generator().manual_seed(1))
        self.rows, self.kind, self.batch, self.workers = TensorDataset(x, (x.sum(1) > 0).long()), kind, batch, workers

    def train_dataloader(self):
        match self.kind:
            case "stream":
                return DataLoader(Stream(), batch_size=8)
            case "weighted":
                sampler = WeightedRandomSampler([1.0] * len(self.rows), len(self.rows))
                return DataLoader(self.rows, batch_size=8, sampler=sampler)
            case "many":
                return {"a": DataLoader(self.rows), "b": DataLoader(self.rows)}
            case "whole":
                return DataLoader(self.rows, batch_size=None)
            case _:
                return DataLoader(self.rows, batch_size=self.batch, shuffle=True, num_workers=self.workers)
"""
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
DP = {"mode": "local", "noise": 1.0, "clip": 0.3, "adaptive": None, "delta": 1e-5, "epsilon": None}


@pytest.fixture(scope="module", autouse=True)
def code(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    (folder / "private_code.py").write_text(CODE)
    (folder / "private_unified.py").write_text(CODE.replace("pytorch_lightning", "lightning.pytorch"))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def seeded(monkeypatch):
    """The training's generator, and a twin of it."""
    monkeypatch.setattr(private, "Generator", lambda: Generator.of(bytes([7]) * 32))
    return Generator.of(bytes([7]) * 32)


@pytest.fixture
def train(tmp_path):
    """Train as a node does; the result, the first model and the update."""

    def train(key="r0001/alice/a1", *, file="private_code", net=None, data=None, dp=None, owner=None, **fields):
        first = {name: one.clone() for name, one in load(f"{file}.py:Net")(**(net or {})).state_dict().items()}
        save(tmp_path / "base.safetensors", first)
        history = fields.pop("history", [])
        options = {
            "seed": 7,
            "model": f"{file}.py:Net",
            "model_args": net or {},
            "data": f"{file}.py:Data",
            "data_args": data or {},
            "threads": 1,
            **fields,
        }
        options["trainer"] = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, **fields.get("trainer", {})}
        task = Task(
            key=TaskKey.parse(key),
            models={"base": digest(tmp_path / "base.safetensors")},
            privacy={"differential_privacy": {**DP, **(dp or {})}, "history": history},
            **options,
        )
        folder = tmp_path / task.key.folder
        folder.mkdir(exist_ok=True)
        if owner:
            (folder / "owner.json").write_text(json.dumps(owner))
        result = perform(task, {"base": tmp_path / "base.safetensors"}, folder, lambda _: None, 1)
        return result, first, dict(Weights.open(folder / "update.safetensors"))

    return train


def rows(count=40):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(1))
    return x, (x.sum(1) > 0).long()


def drawn(count, batches, generator):
    """The batches of two epochs: whose examples, with none for a batch of nobody."""
    sampler = Batches(count, batches, generator)
    for _ in range(2):
        for chosen in sampler:
            yield chosen if sampler.drawn[-1] else []


def by_hand(first, count, batches, generator, *, noise, clip=0.3):
    """The plain loop: a gradient an example, cut down, summed, with noise, over the expected number."""
    model = load("private_code.py:Net")()
    model.load_state_dict(first)
    x, y = rows(count)
    own = list(model.parameters())
    for chosen in drawn(count, batches, generator.split()):
        total = [torch.zeros_like(each) for each in own]
        for i in chosen:
            loss = cross_entropy(model.head(model.body(x[i : i + 1])), y[i : i + 1])
            gradient = torch.autograd.grad(loss, own)
            norm = torch.stack([each.norm() for each in gradient]).norm()
            for one, each in zip(total, gradient, strict=True):
                one.add_(each * min(1.0, clip / (norm + 1e-6)))
        with torch.no_grad():
            for one, each in zip(total, own, strict=True):
                one.add_(torch.from_numpy(generator.gaussian(each.numel(), noise * clip)).float().view_as(each))
                each.sub_(0.5 * one / (count / batches))
    return model.state_dict()


def by_the_engine(first, count, batches, generator, monkeypatch, *, noise, clip=0.3):
    """Opacus' own engine over the same batches, with the same noise."""
    model = load("private_code.py:Net")()
    model.load_state_dict(first)
    x, y = rows(count)
    loader = DataLoader(list(zip(x, y, strict=True)), batch_size=count // batches)
    wrapped, optimizer, _ = PrivacyEngine(accountant="rdp").make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.5),
        data_loader=loader,
        noise_multiplier=noise,
        max_grad_norm=clip,
        poisson_sampling=False,
    )
    monkeypatch.setattr(
        "opacus.optimizers.optimizer._generate_noise",
        lambda std, reference, **_: (
            torch.from_numpy(generator.gaussian(reference.numel(), std)).float().view_as(reference)
        ),
    )
    for chosen in drawn(count, batches, generator.split()):
        optimizer.zero_grad()
        loss = cross_entropy(wrapped.head(wrapped.body(x[chosen])), y[chosen])
        loss.backward()
        optimizer.step()
    return model.state_dict()


def trained(state):
    return torch.cat([state[name].flatten() for name in sorted(state) if name != "seen"])


# As it should be


@pytest.mark.parametrize("file", ["private_code", "private_unified"])
@pytest.mark.parametrize("noise", [1e-9, 1.0])
@pytest.mark.parametrize(("count", "batch"), [(40, 8), (6, 1)])
def test_it_is_what_a_plain_loop_and_opacus_engine_do(train, seeded, monkeypatch, file, noise, count, batch):
    result, first, update = train(file=file, dp={"noise": noise}, data={"count": count, "batch": batch})
    batches = count // batch
    expected = by_hand(first, count, batches, seeded, noise=noise)
    torch.testing.assert_close(trained(update), trained(expected), rtol=1e-4, atol=2e-6)
    engines = by_the_engine(first, count, batches, Generator.of(bytes([7]) * 32), monkeypatch, noise=noise)
    torch.testing.assert_close(trained(update), trained(engines), rtol=1e-4, atol=2e-6)
    assert not torch.equal(trained(update), trained(first))
    assert result.steps == result.privacy["steps"] == 2 * batches


def test_batches_are_drawn_by_poissons_chance():
    sampler = Batches(500, 25, Generator())
    sizes = [len(each) for _ in range(40) for each in sampler]
    assert sampler.rate == 0.04
    assert abs(np.mean(sizes) - 20) < 4.5 * np.sqrt(500 * 0.04 * 0.96 / 1000)
    assert 0.8 < np.var(sizes) / (500 * 0.04 * 0.96) < 1.25


def test_a_batch_of_nobody_is_a_step_of_noise_alone(train, seeded):
    sampler = Batches(3, 3, Generator())
    assert any(sampler.drawn[-1] == 0 and chosen == [0] for _ in range(40) for chosen in sampler)
    _, first, update = train(dp={"noise": 1e-9}, data={"count": 1, "batch": 1}, trainer={"max_epochs": 1})
    assert not torch.equal(trained(update), trained(first)), "one example in one batch is always drawn"


def test_workers_read_the_same_batches(train, seeded):
    _, _, alone = train(dp={"noise": 1.0})
    _, _, read = train(dp={"noise": 1.0}, data={"workers": 1})
    assert torch.equal(trained(alone), trained(read))


def test_what_is_spent_is_told_with_what_was_before(train):
    result, _, _ = train(history=[[1.0, 0.2, 30]])
    assert dict(result.privacy) == {
        "noise": 1.0,
        "rate": 0.2,
        "steps": 10,
        "delta": 1e-5,
        "epsilon": epsilon([(1.0, 0.2, 40)], 1e-5),
    }


def test_two_trainings_alike_have_other_noise(train):
    assert not torch.equal(trained(train()[2]), trained(train()[2]))


def test_what_no_noise_was_put_on_stays_as_it_came(train):
    _, first, update = train(net={"kind": "frozen"})
    for name in ("seen", "body.0.weight"):
        assert torch.equal(update[name], first[name])
    assert not torch.equal(update["head.weight"], first["head.weight"])


@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "RMSprop"])
def test_any_optimizer_takes_noisy_steps(train, optimizer):
    _, first, update = train(net={"kind": "group", "optimizer": optimizer})
    assert all(not torch.equal(update[name], first[name]) for name in first if name != "seen")


def test_a_rule_that_pulls_on_noisy_gradients_goes_with_it(train):
    assert train(local={"name": "fedprox", "mu": 0.1})[0].privacy["steps"] == 10


def test_training_alone_has_noise_too_and_fine_tuning_stays_on_the_node(train):
    assert train("r0000/alice/s1")[0].privacy["steps"] == 10
    result, _, _ = train()
    assert result.privacy


def test_the_users_module_is_left_as_it_was(train):
    before = len(_global_optimizer_post_hooks)
    with pytest.raises(ConfigError):
        train(net={"kind": "bare"})
    train()
    assert len(_global_optimizer_post_hooks) == before


# Budgets


def test_a_training_that_would_overdraw_the_federations_budget_is_refused_before_it_starts(train, tmp_path):
    cost = epsilon([(1.0, 0.2, 40)], 1e-5)
    train(dp={"epsilon": cost}, history=[[1.0, 0.2, 30]])
    with pytest.raises(ConfigError, match="the federation's budget allows"):
        train("r0002/alice/a1", dp={"epsilon": cost}, history=[[1.0, 0.2, 31]])
    assert not (tmp_path / "r0002-alice-a1" / "update.safetensors").exists()


def test_the_owner_of_a_node_has_a_budget_of_all_runs(train):
    owner = {"epsilon": epsilon([(0.5, 0.5, 2), (1.0, 0.2, 10)], 1e-6), "delta": 1e-6}
    train(owner={**owner, "spent": [[0.5, 0.5, 2]]})
    with pytest.raises(ConfigError, match="the node's owner allows"):
        train(owner={**owner, "spent": [[0.5, 0.5, 2], [1.0, 0.2, 1]]})


def test_a_budget_and_a_training_without_end_do_not_go_together(train):
    with pytest.raises(ConfigError, match="max_epochs or max_steps"):
        train(dp={"epsilon": 8.0}, trainer={"max_epochs": -1, "max_time": {"seconds": 1}})


# Refusals


@pytest.mark.parametrize(
    ("net", "says"),
    [
        ({"kind": "norm"}, "BatchNorm1d `body.1` mixes the examples of a batch: replace it by GroupNorm"),
        ({"kind": "bare norm"}, "BatchNorm1d `body.1` mixes the examples"),
        ({"kind": "words"}, "make Embedding `words` without `sparse`"),
        ({"kind": "recurrent"}, "cannot take apart what GRU `memory` does"),
        ({"kind": "manual"}, "needs automatic optimization"),
        ({"kind": "bare"}, "no gradients of single examples for `scale`"),
        ({"kind": "counting"}, "Counting `body.1` has buffers beside what is trained"),
        ({"kind": "spare"}, "no gradients of single examples for `spare.weight`"),
        ({"kind": "skipping"}, "no gradients of single examples for `body.0.weight`"),
        ({"kind": "folded"}, r"gradients for \d+ examples: keep the examples in the first dimension"),
        ({"kind": "beside"}, "does not reach a step of SGD"),
        ({"optimizer": "LBFGS"}, "LBFGS goes by both"),
    ],
)
def test_a_module_that_noise_cannot_cover_is_refused_by_name(train, net, says):
    with pytest.raises(ConfigError, match=says):
        train(net=net)


@pytest.mark.parametrize(
    ("trainer", "says"),
    [
        ({"accumulate_grad_batches": 2}, "leave accumulate_grad_batches out"),
        ({"precision": "bf16-mixed"}, "needs full precision, not bf16-mixed"),
        ({"overfit_batches": 2}, "leave overfit_batches out"),
    ],
)
def test_a_way_of_training_that_noise_cannot_cover_is_refused(train, trainer, says):
    with pytest.raises(ConfigError, match=says):
        train(trainer=trainer)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("stream", "an IterableDataset has none"),
        ("weighted", "WeightedRandomSampler has no place"),
        ("many", "to return a DataLoader, not a dict"),
        ("whole", "give the DataLoader a batch_size alone"),
    ],
)
def test_examples_that_cannot_be_drawn_are_refused(train, kind, says):
    with pytest.raises(ConfigError, match=says):
        train(data={"kind": kind})


@pytest.mark.parametrize(
    "rule", [{"name": "scaffold"}, {"name": "phases", "phases": [{"train": ["head.*"], "epochs": 1}]}]
)
def test_a_rule_that_goes_around_the_noise_is_refused(train, rule):
    with pytest.raises(ConfigError, match="what differential privacy does not cover"):
        train(local=rule)


def test_the_coordinator_refuses_such_a_module_before_any_node_trains(tmp_path):
    task = Task(
        key=TaskKey.parse("r0000/coordinator/i1"),
        seed=7,
        model="private_code.py:Net",
        model_args={"kind": "norm"},
        data="private_code.py:Data",
        data_args={},
        trainer={},
        privacy={"differential_privacy": DP},
    )
    with pytest.raises(ConfigError, match=r"BatchNorm1d `body\.1`"):
        perform(task, {}, tmp_path, lambda _: None, 1)
