"""The family of local rules, on nodes that train for real: each against its formula in a plain loop of torch."""

import json
import re
import sys
from copy import deepcopy
from dataclasses import asdict
from itertools import cycle

import pytest
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.strategies import SingleDeviceStrategy, StrategyRegistry
from torch.nn.functional import cosine_similarity, cross_entropy
from torch.optim.optimizer import _global_optimizer_post_hooks

from fedctl.durable import digest
from fedctl.errors import ConfigError
from fedctl.node import keep
from fedctl.node.rules import RULES, build, kind_of
from fedctl.node.trainers.code import load
from fedctl.node.trainers.lightning import perform
from fedctl.records import MEMORY, REST, Task, TaskKey
from fedctl.share import Share, matches
from fedctl.strategies.options import from_options
from fedctl.weights import Weights, save, split

CODE = """
from fnmatch import fnmatchcase

import pytorch_lightning as pl
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

class Net(pl.LightningModule):
    def __init__(
        self, optimizer="SGD", options=None, manual=False, frozen="", norm=False, double=True, crash=-1, spare=False
    ):
        super().__init__()
        torch.manual_seed(3)
        middle = torch.nn.BatchNorm1d(5) if norm else torch.nn.Tanh()
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 5), middle)
        self.head = torch.nn.Linear(5, 2)
        self.spare = torch.nn.Linear(1, 1) if spare else torch.nn.Identity()
        self.kind, self.options = optimizer, {"lr": 0.2, **(options or {})}
        self.automatic_optimization, self.crash = not manual, crash
        for name, each in self.named_parameters():
            each.requires_grad_(not fnmatchcase(name, frozen))
        if double:
            self.double()

    def training_step(self, batch, index):
        if index == self.crash:
            raise RuntimeError("the user's code breaks")
        loss = cross_entropy(self.head(self.body(batch[0].to(self.head.weight.dtype))), batch[1])
        if not self.automatic_optimization:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
        return loss

    def configure_optimizers(self):
        kind = getattr(torch.optim, self.kind)
        if self.automatic_optimization:
            return kind(self.parameters(), **self.options)
        return [kind(each.parameters(), **self.options) for each in (self.body, self.head)]

class Branching(Net):
    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        return loss + self.spare(batch[0][:, :1]).square().mean() if index % 2 else loss

class Zeroing(Branching):
    def optimizer_zero_grad(self, epoch, batch, optimizer):
        optimizer.zero_grad(set_to_none=False)

def rows(site, count=43):
    features = torch.randn(count, 4, dtype=torch.double, generator=torch.Generator().manual_seed(site))
    return features + site, (features.sum(1) > site - 0.5).long()

class Data(pl.LightningDataModule):
    def __init__(self, site=0):
        super().__init__()
        self.rows = TensorDataset(*rows(site))

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=8)

class Quadratic(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.x = torch.nn.Parameter(torch.zeros(1, dtype=torch.double))

    def training_step(self, batch, index):
        return (batch[0] / 2 * (self.x - batch[1]).square()).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

class Bowl(pl.LightningDataModule):
    def __init__(self, site=0, steps=10):
        super().__init__()
        curve, place = [(4.0, 1.0), (1.0, -1.0)][site]
        one = torch.ones(steps, dtype=torch.double)
        self.rows = TensorDataset(curve * one, place * one)

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=1)
"""
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
EPOCHS = 2
SITES = (0, 1)
MINIMAL = {
    "phases": {"phases": [{"train": ["head.*"], "epochs": 1}, {"except": ["head.*"], "epochs": 1}]},
    "moon": {"features": "body"},
}
"""Options of the rules that have some without a default."""


@pytest.fixture(scope="module", autouse=True)
def code(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    (folder / "rules_code.py").write_text(CODE)
    (folder / "rules_unified.py").write_text(CODE.replace("pytorch_lightning", "lightning.pytorch"))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


class Node:
    """One node, which does its trainings one after the other and keeps what a rule has it keep."""

    def __init__(self, folder, rule, *, site=0, file="rules_code", model="Net", data="Data", data_args=None, **fields):
        self.folder, self.site, self.number, self.last = folder, site, 0, None
        trainer = {"accelerator": "cpu", "devices": 1, "max_epochs": EPOCHS, **fields.pop("trainer", {})}
        self.fields = {
            "seed": 7,
            "model": f"{file}.py:{model}",
            "model_args": {},
            "data": f"{file}.py:{data}",
            "data_args": {"site": site, **(data_args or {})},
            "local": rule,
            "trainer": trainer,
            "threads": 1,
            **fields,
        }

    @property
    def first(self):
        """The model before any training, as its names say it."""
        state = load(self.fields["model"])(**self.fields["model_args"]).state_dict()
        return {name: tensor.clone() for name, tensor in state.items()}

    def train(self, start, memory=None):
        """The update from there, and the controls beside it."""
        self.number += 1
        home = self.fields.get("share", {}).get("except", [])
        labelled = {
            "base": {name: each for name, each in start.items() if not matches(name, home)},
            REST: {name: each for name, each in self.first.items() if matches(name, home)},
            MEMORY: memory,
        }
        models = {}
        for label, tensors in labelled.items():
            if not tensors:
                continue
            models[label] = self.folder / f"{label}-{self.site}-{self.number}.safetensors"
            save(models[label], tensors)
        key = TaskKey.parse(f"r{self.number:04d}/n{self.site}/a1")
        blobs = {label: digest(path) for label, path in models.items()}
        task = Task(key=key, models=blobs, kept=self.last, **self.fields)
        folder = self.folder / key.folder
        folder.mkdir()
        self.result = perform(task, models, folder, lambda _: None, 1)
        self.last = key
        weights, controls = split(Weights.open(folder / "update.safetensors"))
        return dict(weights), dict(controls)

    @property
    def kept(self):
        """What the rule has left here."""
        task = Task(key=self.last, kept=self.last, **self.fields)
        found = keep.load(self.folder, task)
        return {name: tensor.clone() for name, tensor in found.rule.items()} if found else {}


@pytest.fixture
def node(tmp_path):
    def node(rule, **fields):
        return Node(tmp_path, rule, **fields)

    return node


def by_hand(start, term, *, site=0, epochs=EPOCHS, model_args=None, loss=None, clip=None):
    """The same training in a plain loop, with `term(name, y)` beside each gradient; and the gradients before it."""
    net = load("rules_code.py:Net")(**(model_args or {}))
    net.load_state_dict(start)
    optimizer, raw = net.configure_optimizers(), []
    features, targets = load("rules_code.py:rows")(site)
    for _ in range(epochs):
        for rows, wanted in zip(features.split(8), targets.split(8), strict=True):
            optimizer.zero_grad()
            made = net.body(rows)
            value = cross_entropy(net.head(made), wanted)
            (value + (loss(net, rows, made) if loss else 0)).backward()
            for each in net.parameters():
                each.grad = torch.zeros_like(each) if each.grad is None else each.grad
            raw.append({name: each.grad.clone() for name, each in net.named_parameters()})
            for name, each in net.named_parameters():
                each.grad.add_(term(name, each.detach()))
            if clip:
                torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
    return {name: each.clone() for name, each in net.state_dict().items()}, raw


def nothing(_name, value):
    return torch.zeros_like(value)


def gradient_at(start, site):
    """Of the loss over all rows of a site."""
    net = load("rules_code.py:Net")()
    net.load_state_dict(start)
    features, targets = load("rules_code.py:rows")(site)
    cross_entropy(net.head(net.body(features)), targets).backward()
    return {name: each.grad for name, each in net.named_parameters()}


def mean(many):
    return {name: sum(each[name] for each in many) / len(many) for name in many[0]}


def less(one, other):
    return {name: one[name] - other[name] for name in one}


def zeros(like):
    return {name: torch.zeros_like(each) for name, each in like.items()}


def near(one, other, tolerance=1e-12):
    return one.keys() == other.keys() and all(
        torch.allclose(one[name], other[name], rtol=tolerance, atol=tolerance) for name in one
    )


def options(rule):
    return {"name": rule, **MINIMAL.get(rule, {})}


# The family


@pytest.mark.parametrize("file", ["rules_code", "rules_unified"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_trains_with_either_lightning_and_keeps_what_it_says(node, rule, file):
    one = node(options(rule), file=file)
    start = one.first
    for _ in range(2):
        update, controls = one.train(start)
        assert update.keys() == start.keys()
        assert not near(update, start, 1e-3)
        assert bool(one.kept) == kind_of(rule).keeps
        for tensors in (one.kept, controls):
            assert all(tensors[name].dtype == start[name].dtype for name in tensors)
            assert all(tensors[name].shape == start[name].shape for name in tensors)
        start = update
    if kind_of(rule).is_personal:
        assert one.kept.keys() == start.keys()


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_on_a_node_is_the_one_that_was_checked(rule):
    told = {name: value for name, value in options(rule).items() if name != "name"}
    checked = from_options(kind_of(rule), told, where="local")
    assert json.dumps(asdict(build(options(rule)))) == json.dumps(asdict(checked))


@pytest.mark.parametrize(
    ("rule", "told", "sentence"),
    [
        ("scaffold", {"option": 3}, "local/option: should be 1 or 2, not 3"),
        ("feddyn", {"alpha": 0}, "local/alpha: should be above 0, not 0.0"),
        ("ditto", {"lambda": -1}, "local/lambda: should be at least 0, not -1.0"),
        ("ditto", {"lambda": "much"}, "local/lambda: should be a number, not 'much'"),
        ("ditto", {"lambda_": 1}, "local/lambda_: unknown option"),
        ("ditto", {"epochs": 0}, "local/epochs: should be at least 1, not 0"),
        ("phases", {}, "local/phases: should have at least one phase, such as"),
        ("phases", {"phases": {}}, "local/phases: should be a list, each a mapping, not {}"),
        ("phases", {"phases": ["head.*"]}, "local/phases: should be a mapping, not 'head.*'"),
        ("phases", {"phases": [{"epochs": 1}]}, "local/phases: should each have one of `train` and `except`, not {'e"),
        ("phases", {"phases": [{"train": ["a"], "except": ["b"]}]}, "should each have one of `train` and `except`"),
        (
            "phases",
            {"phases": [{"train": ["a"], "epoch": 1}]},
            "should each be a mapping of `epochs` and of `train` or",
        ),
        ("phases", {"phases": [{"train": "a", "epochs": 1}]}, "should each name parameters by a list of patterns, not"),
        ("phases", {"phases": [{"train": [], "epochs": 1}]}, "should each name parameters by a list of patterns"),
        ("phases", {"phases": [{"train": ["a"]}]}, "should each have `epochs`, a whole number from 1, not {'train"),
        ("phases", {"phases": [{"train": ["a"], "epochs": 0}]}, "should each have `epochs`, a whole number from 1"),
        ("phases", {"phases": [{"train": ["a"], "epochs": True}]}, "should each have `epochs`, a whole number from 1"),
        ("moon", {}, "local/features: should name the submodule that makes the representation"),
        ("moon", {"features": "body", "tau": 0}, "local/tau: should be above 0, not 0.0"),
        ("moon", {"features": "body", "mu": -1}, "local/mu: should be at least 0, not -1.0"),
    ],
)
def test_options_are_checked_before_a_run(rule, told, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        from_options(kind_of(rule), told, where="local")


@pytest.mark.parametrize("rule", ["fedprox", "scaffold", "feddyn", "ditto"])
def test_what_watches_each_step_is_gone_after_the_user_s_code_broke(node, rule):
    start = node(None).first
    with pytest.raises(RuntimeError, match="the user's code breaks"):
        node(options(rule), site=3, model_args={"crash": 2}).train(start)
    assert not _global_optimizer_post_hooks


@pytest.mark.parametrize("model", ["Net", "Branching", "Zeroing"])
@pytest.mark.parametrize(
    "rule",
    [
        {"name": "fedprox", "mu": 0.8},
        {"name": "scaffold"},
        {"name": "scaffold", "option": 1},
        {"name": "feddyn", "alpha": 0.8},
        {"name": "ditto", "lambda": 0.8},
    ],
)
def test_a_parameter_without_a_gradient_has_the_term_alone(node, rule, model):
    """`spare` never has one in `Net`, and none in every second batch of the others; then all are clipped in place."""
    one = node(rule, model=model, model_args={"spare": True}, trainer={"gradient_clip_val": 0.1})

    def trained(start, term):
        turns = cycle([False, model != "Net"])

        def loss(net, rows, _made):
            return net.spare(rows[:, :1]).square().mean() if next(turns) else 0

        return by_hand(start, term, model_args={"spare": True}, loss=loss, clip=0.1)

    x, c, kept = one.first, None, {}
    for _ in range(3):

        def term(name, value, x=x, c=c, kept=kept):
            if rule["name"] == "scaffold":
                return c[name] - kept[name] if c else torch.zeros_like(value)
            pull = 0.8 * (value - x[name])
            return pull - kept[name] if rule["name"] == "feddyn" and kept else pull

        expected, _ = trained(x, nothing if rule["name"] == "ditto" else term)
        update, _ = one.train(x, c)
        assert near(update, expected)
        if rule["name"] == "ditto":
            assert near(one.kept, trained(kept or x, term)[0])
        x, kept = elsewhere(update), one.kept
        c = {name: torch.full_like(each, 0.5) for name, each in x.items()} if rule["name"] == "scaffold" else None


class Elsewhere(SingleDeviceStrategy):
    """Trains on a device that every machine has: its tensors do not mix with the CPU's, and come back as twos."""

    def model_to_device(self):
        self.model.to("meta")

    def batch_to_device(self, batch, device=None, dataloader_idx=0):
        return super().batch_to_device(batch, torch.device("meta"), dataloader_idx)

    def teardown(self):
        self.lightning_module.to_empty(device="cpu")
        for each in self.lightning_module.parameters():
            torch.nn.init.constant_(each, 2)
        super().teardown()


@pytest.fixture
def elsewhere_as_strategy():
    StrategyRegistry.register("elsewhere", Elsewhere, device="cpu")
    yield
    StrategyRegistry.remove("elsewhere")


@pytest.mark.usefixtures("elsewhere_as_strategy")
@pytest.mark.parametrize("rule", ["fedprox", "feddyn", "ditto", "moon"])
def test_lightning_trains_on_another_device_and_brings_the_module_back_to_the_cpu(node, rule):
    """Without scaffold, which brings values from there."""
    one = node(options(rule), trainer={"strategy": "elsewhere"})
    x, kept = one.first, {}
    for _ in range(2):
        update, _ = one.train(x)
        assert near(update, {name: torch.full_like(each, 2) for name, each in x.items()})
        if rule == "feddyn":
            kept = {name: kept.get(name, 0) - 0.1 * (2 - x[name]) for name in x}
            assert near(one.kept, kept)
        x = elsewhere(update)


def test_tensors_that_stay_at_home_are_trained_as_without_a_rule(node):
    """Nobody else has them, so there is nothing to correct them by."""
    one = node({"name": "scaffold"}, share=Share(kept=("head.*",)).to_json())
    start, own, memory = one.first, zeros(one.first), {}
    for _ in range(3):
        away = {name: memory.get(name, 0) - own[name] * (not matches(name, ["head.*"])) for name in own}
        expected, raw = by_hand(start, lambda name, value, away=away: away[name] + torch.zeros_like(value))
        update, controls = one.train(start, memory)
        own = mean(raw)
        assert near({**expected, **update}, expected)
        assert update.keys() == controls.keys() == one.kept.keys() == {"body.0.weight", "body.0.bias"}
        start, memory = expected, {name: 0.3 * own[name] for name in update}


def test_feddyn_keeps_nothing_of_tensors_that_stay_at_home(node):
    one = node({"name": "feddyn", "alpha": 3.0}, share=Share(kept=("body.*",)).to_json())
    x = one.first

    def term(name, value):
        return 3.0 * (value - x[name]) * name.startswith("head")

    update, _ = one.train(x)
    expected, _ = by_hand(x, term)
    assert near({**expected, **update}, expected)
    assert update.keys() == one.kept.keys() == {"head.weight", "head.bias"}


# Scaffold


@pytest.mark.parametrize("option", [1, 2])
def test_scaffold_is_its_formula(node, option):
    nodes = [node({"name": "scaffold", "option": option}, site=site) for site in SITES]
    x = nodes[0].first
    c, own = zeros(x), [zeros(x) for _ in nodes]
    for number in range(3):
        updates, changes = [], []
        for site, one in enumerate(nodes):
            away = less(c, own[site])
            expected, raw = by_hand(x, lambda name, _, away=away: away[name], site=site)
            update, controls = one.train(x, c if number else None)
            assert near(update, expected)
            new = mean(raw) if option == 2 else gradient_at(x, site)
            if option == 2:  # as the paper has it, for the 12 steps with a learning rate of 0.2
                moved = less(x, update)
                assert near(new, {name: own[site][name] - c[name] + moved[name] / (12 * 0.2) for name in c})
            assert near(one.kept, new)
            assert near(controls, less(new, own[site]))
            own[site] = new
            updates.append(update)
            changes.append(controls)
        x = mean(updates)
        c = {name: c[name] + mean(changes)[name] for name in c}
        assert near(c, mean(own))


def test_scaffold_with_one_node_is_training_on_alone(node):
    with_rule, alone = node({"name": "scaffold"}), node({}, site=0, seed=8)
    alone.folder = with_rule.folder / "alone"
    alone.folder.mkdir()
    x = y = with_rule.first
    c = None
    for _ in range(3):
        x, controls = with_rule.train(x, c)
        y, none = alone.train(y)
        c = controls if c is None else {name: c[name] + controls[name] for name in c}
        assert near(x, y)
        assert near(c, with_rule.kept)
        assert none == {}


@pytest.mark.parametrize("option", [1, 2])
@pytest.mark.parametrize(
    "fields",
    [
        {"model_args": {"optimizer": "AdamW", "options": {"weight_decay": 0.3}}},
        {"model_args": {"options": {"momentum": 0.9, "weight_decay": 0.1}}},
        {"trainer": {"accumulate_grad_batches": 4}},
        {"trainer": {"gradient_clip_val": 0.01}},
        {"model_args": {"norm": True}},
    ],
)
def test_option_1_has_the_gradient_of_all_data_at_the_start_whatever_is_stepped(node, fields, option):
    """By option 2 it differs from that, so that the one pass more moved nothing shows in both."""
    fields = {**fields, "trainer": {"max_epochs": 1, **fields.get("trainer", {})}}
    one, plain = node({"name": "scaffold", "option": option}, **fields), node({}, site=0, **fields)
    plain.folder = one.folder / "plain"
    plain.folder.mkdir()
    x = one.first
    update, _ = one.train(x)
    assert near(update, plain.train(x)[0])
    if not fields.get("model_args", {}).get("norm"):
        assert near(one.kept, gradient_at(x, 0)) == (option == 1)
    assert not any("running" in name for name in one.kept)


def test_a_frozen_parameter_has_no_control(node):
    one = node({"name": "scaffold"}, model_args={"frozen": "body.*"})
    x = one.first
    update, controls = one.train(x, {name: torch.ones_like(each) for name, each in x.items()})
    assert controls.keys() == one.kept.keys() == {"head.weight", "head.bias"}
    assert torch.equal(update["body.0.weight"], x["body.0.weight"])


@pytest.mark.parametrize("rule", ["scaffold", "feddyn"])
def test_several_optimizers_are_as_one_of_them(node, rule):
    one, other = node({"name": rule}), node({"name": rule}, model_args={"manual": True})
    other.folder = one.folder / "other"
    other.folder.mkdir()
    x = y = one.first
    for _ in range(2):
        (x, controls), (y, same) = one.train(x), other.train(y)
        assert near(x, y)
        assert near(one.kept, other.kept)
        assert near(controls, same)


def test_a_step_of_several_batches_is_corrected_once(node):
    one = node({"name": "scaffold"}, trainer={"accumulate_grad_batches": 6, "max_epochs": 1})
    x = one.first
    c = {name: torch.ones_like(each) for name, each in x.items()}
    update, _ = one.train(x, c)
    _, raw = by_hand(x, nothing, epochs=1, model_args={"options": {"lr": 0.0}})
    assert near(one.kept, mean(raw))
    assert near(update, {name: x[name] - 0.2 * (mean(raw)[name] + c[name]) for name in x})


def test_option_1_says_where_it_cannot_be(node):
    with pytest.raises(ConfigError, match="scaffold has no option 1 with manual optimization: take option 2"):
        node({"name": "scaffold", "option": 1}, model_args={"manual": True}).train(node({}).first)


@pytest.mark.parametrize("rule", [{"name": "scaffold"}, {"name": "scaffold", "option": 1}, {"name": "feddyn"}])
def test_narrow_precision_keeps_tensors_of_the_model_s_type(node, rule):
    one = node(rule, model_args={"double": False}, trainer={"precision": "bf16-mixed"})
    wide = node(rule, site=0, model_args={"double": False})
    wide.folder = one.folder / "wide"
    wide.folder.mkdir()
    one.train(one.first)
    wide.train(one.first)
    assert {each.dtype for each in one.kept.values()} == {torch.float32}
    assert near(one.kept, wide.kept, 0.02)
    assert not near(one.kept, wide.kept, 1e-6)


def test_a_step_that_overflows_is_none(node):
    """16-mixed, which Lightning itself has on GPUs alone: the first scales give infinite gradients."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    half = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)], "max_epochs": 8}
    one = node({"name": "scaffold"}, model_args={"double": False}, trainer=half)
    one.train(one.first)
    assert scaler.get_scale() < 2.0**24
    wide = node({"name": "scaffold"}, site=0, model_args={"double": False}, trainer={"max_epochs": 8})
    wide.folder = one.folder / "wide"
    wide.folder.mkdir()
    wide.train(one.first)
    assert near(one.kept, wide.kept, 0.1)


# FedDyn


def test_feddyn_is_its_formula(node):
    alpha = 0.7
    nodes = [node({"name": "feddyn", "alpha": alpha}, site=site) for site in SITES]
    x = nodes[0].first
    h, own = zeros(x), [zeros(x) for _ in nodes]
    for _ in range(3):
        updates = []
        for site, one in enumerate(nodes):

            def term(name, value, x=x, g=own[site]):
                return alpha * (value - x[name]) - g[name]

            expected, _ = by_hand(x, term, site=site)
            update, controls = one.train(x)
            assert near(update, expected)
            assert controls == {}
            own[site] = {name: own[site][name] - alpha * (update[name] - x[name]) for name in x}
            assert near(one.kept, own[site])
            updates.append(update)
        y = mean(updates)
        h = {name: h[name] - alpha * (y[name] - x[name]) for name in h}
        x = {name: y[name] - h[name] / alpha for name in x}


# Two quadratics, 2 (x - 1)² and (x + 1)² / 2, whose mean is least at 0.6


def quadratics(node, rule, steps):
    bowls = {"model": "Quadratic", "data": "Bowl", "trainer": {"max_epochs": 1}}
    return [node(rule, site=site, data_args={"steps": each}, **bowls) for site, each in zip(SITES, steps, strict=True)]


def test_averages_of_uneven_nodes_end_elsewhere(node):
    x = torch.zeros(1, dtype=torch.double)
    nodes = quadratics(node, {}, (10, 10))
    for _ in range(10):
        x = mean([one.train({"x": x})[0] for one in nodes])["x"]
    assert x.item() == pytest.approx(0.208252, abs=1e-3)


@pytest.mark.parametrize(("steps", "rounds"), [((10, 10), 16), ((1, 10), 28)])
def test_scaffold_finds_the_least_mean(node, steps, rounds):
    x, c = torch.zeros(1, dtype=torch.double), torch.zeros(1, dtype=torch.double)
    nodes = quadratics(node, {"name": "scaffold"}, steps)
    for _ in range(rounds):
        updates, controls = zip(*(one.train({"x": x}, {"x": c}) for one in nodes), strict=True)
        x, c = mean(updates)["x"], c + mean(controls)["x"]
    assert x.item() == pytest.approx(0.6, abs=5e-4)


@pytest.mark.parametrize(("steps", "rounds"), [((10, 10), 16), ((1, 10), 22)])
def test_feddyn_finds_the_least_mean(node, steps, rounds):
    x, h = torch.zeros(1, dtype=torch.double), torch.zeros(1, dtype=torch.double)
    nodes = quadratics(node, {"name": "feddyn", "alpha": 1.0}, steps)
    for _ in range(rounds):
        y = mean([one.train({"x": x})[0] for one in nodes])["x"]
        h = h - (y - x)
        x = y - h
    assert x.item() == pytest.approx(0.6, abs=5e-4)


# Ditto


@pytest.mark.parametrize("epochs", [None, 3])
def test_ditto_trains_as_ever_and_a_model_of_the_node_s_own_beside(node, epochs):
    nodes = [node({"name": "ditto", "lambda": 0.8, "epochs": epochs}, site=site) for site in SITES]
    x = nodes[0].first
    own = [x, x]
    for _ in range(3):
        updates = []
        for site, one in enumerate(nodes):
            expected, raw = by_hand(x, nothing, site=site)
            update, _ = one.train(x)
            assert near(update, expected)
            assert one.result.steps == len(raw)
            own[site], _ = by_hand(
                own[site], lambda name, value, x=x: 0.8 * (value - x[name]), site=site, epochs=epochs or EPOCHS
            )
            assert near(one.kept, own[site])
            updates.append(update)
        x = mean(updates)
    assert not near(own[0], own[1], 0.1)


def test_ditto_s_own_model_has_statistics_of_its_own(node):
    one = node({"name": "ditto"}, model_args={"norm": True})
    x = one.first
    for count in (12, 24):
        one.train(x)
        assert one.kept["body.1.num_batches_tracked"] == count
        assert one.kept["body.1.running_mean"].abs().sum() > 0


# Phases


HEAD_THEN_BODY = [{"train": ["head.*"], "epochs": 2}, {"except": ["head.*"], "epochs": 1}]


@pytest.mark.parametrize(
    "model_args",
    [
        {},
        {"options": {"momentum": 0.9, "weight_decay": 0.1}},
        {"optimizer": "AdamW", "options": {"weight_decay": 0.1}},
        {"optimizer": "Adam", "manual": True},
    ],
)
def test_phases_train_what_they_name_and_nothing_else_moves(node, model_args):
    """In a plain loop: parameters without a gradient, and one optimizer all along."""
    one = node({"name": "phases", "phases": HEAD_THEN_BODY}, model_args=model_args)
    x = one.first
    update, _ = one.train(x)
    assert one.result.steps == 3 * 6 * (2 if model_args.get("manual") else 1)

    net = load("rules_code.py:Net")(**model_args)
    net.load_state_dict(x)
    optimizers = net.configure_optimizers()
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    features, targets = load("rules_code.py:rows")(0)
    for epoch in range(3):
        for name, each in net.named_parameters():
            each.requires_grad_(name.startswith("head") == (epoch < 2))
            each.grad = None
        for rows, wanted in zip(features.split(8), targets.split(8), strict=True):
            for optimizer in optimizers:
                optimizer.zero_grad()
            cross_entropy(net.head(net.body(rows)), wanted).backward()
            for optimizer in optimizers:
                optimizer.step()
        if epoch == 1:
            assert torch.equal(net.body[0].weight, x["body.0.weight"])
    assert near(update, net.state_dict())


def test_a_phase_trains_nothing_that_was_not_trained_before(node):
    everything = {"name": "phases", "phases": [{"train": ["*"], "epochs": 1}]}
    one = node(everything, model_args={"frozen": "body.*"})
    x = one.first
    update, _ = one.train(x)
    assert torch.equal(update["body.0.weight"], x["body.0.weight"])
    assert not torch.equal(update["head.weight"], x["head.weight"])


@pytest.mark.parametrize(
    ("phase", "sentence"),
    [
        ({"train": ["haed.*"], "epochs": 1}, "no parameter that is trained matches 'haed.*'"),
        ({"except": ["body.*", "*norm*"], "epochs": 1}, r"no parameter that is trained matches '\*norm\*'"),
        ({"except": ["*"], "epochs": 1}, r"nothing is left to train except \*"),
    ],
)
def test_phases_that_do_not_fit_the_model_are_refused(node, phase, sentence):
    one = node({"name": "phases", "phases": [*HEAD_THEN_BODY, phase]})
    with pytest.raises(ConfigError, match=sentence):
        one.train(one.first)


# Moon


def contrast(x, former, *, mu=2.0, tau=0.3):
    """The term of Moon, for what the body of `x` and of the former model make of the same rows."""

    def loss(net, rows, made):
        bodies = [deepcopy(net.body).eval() for _ in range(2)]
        for body, state in zip(bodies, (x, former), strict=True):
            body.load_state_dict({name.removeprefix("body."): state[name] for name in state if "body" in name})
        here, there = (torch.exp(cosine_similarity(made, body(rows).detach()) / tau) for body in bodies)
        return mu * -torch.log(here / (here + there)).mean()

    return loss


MOON = {"name": "moon", "mu": 2.0, "tau": 0.3, "features": "body"}


def elsewhere(update):
    """What others might have made of an update."""
    return {name: each + 0.1 if each.is_floating_point() else each for name, each in update.items()}


def test_moon_is_its_formula(node):
    args = {"norm": True}
    one = node(MOON, model_args=args)
    x, former = one.first, None
    for _ in range(3):
        expected, _ = by_hand(x, nothing, model_args=args, loss=contrast(x, former) if former else None)
        update, _ = one.train(x)
        assert near(update, expected)
        assert near(one.kept, {name: each for name, each in update.items() if name.startswith("body.")})
        assert former is None or not near(update, by_hand(x, nothing, model_args=args)[0], 1e-3)
        x, former = elsewhere(update), update


def test_moon_s_term_is_divided_over_the_batches_of_a_step(node):
    one = node(MOON, trainer={"accumulate_grad_batches": 6, "max_epochs": 1})
    former, _ = one.train(one.first)
    x = elsewhere(former)
    _, raw = by_hand(x, nothing, epochs=1, model_args={"options": {"lr": 0.0}}, loss=contrast(x, former))
    update, _ = one.train(x)
    assert near(update, {name: x[name] - 0.2 * mean(raw)[name] for name in x})


def test_moon_s_term_is_scaled_as_the_loss_is(node):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    one = node(MOON, trainer={"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]})
    former, _ = one.train(one.first)
    x = elsewhere(former)
    update, _ = one.train(x)
    assert near(update, by_hand(x, nothing, loss=contrast(x, former))[0], 0.01)
    assert not near(update, by_hand(x, nothing)[0], 0.1)


@pytest.mark.parametrize(
    ("part", "model_args", "sentence"),
    [
        ("bodi", {}, "local/features: the model has no submodule 'bodi'"),
        ("head", {}, "moon: what head is given comes from what is trained"),
        ("spare", {}, "local/features: there are no parameters in 'spare'"),
        ("spare", {"spare": True}, "moon: spare was not called in the training"),
        ("body", {"manual": True}, "moon adds to the loss, and with manual optimization there may be many"),
        ("body", {"optimizer": "LBFGS"}, "moon changes gradients and not the loss, and LBFGS goes by both"),
    ],
)
def test_where_moon_cannot_be_the_training_is_refused(node, part, model_args, sentence):
    one = node({**MOON, "features": part}, model_args=model_args)
    with pytest.raises(ConfigError, match=sentence):
        one.train(one.first)


def test_moon_s_part_may_be_given_what_frozen_parts_make(node):
    one = node({**MOON, "features": "head"}, model_args={"frozen": "body.*"})
    one.train(one.train(one.first)[0])
    assert one.kept.keys() == {"head.weight", "head.bias"}
