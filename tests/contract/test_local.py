"""What a node's training follows: the user's callbacks, whatever Lightning can do, and a local rule beside them."""

import sys

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision

from fedctl.actions import Perform
from fedctl.durable import digest
from fedctl.errors import ConfigError
from fedctl.federation import Federation, Named, Node, TaskSpec
from fedctl.jobs import task_of
from fedctl.node.trainers.code import load
from fedctl.node.trainers.lightning import perform
from fedctl.operations.algorithm import build_algorithm
from fedctl.records import Result, Task, TaskKey
from fedctl.strategies.mean import Mean
from fedctl.weights import Weights

CODE = """
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

class Net(pl.LightningModule):
    def __init__(
        self, optimizer="SGD", options=None, scheduler=None, manual=False, compiled=False, norm=True, term=0.0
    ):
        super().__init__()
        self.kind, self.options, self.scheduler = optimizer, {"lr": 0.1, **(options or {})}, scheduler
        self.automatic_optimization, self.term = not manual, term
        middle = torch.nn.BatchNorm1d(8) if norm else torch.nn.Identity()
        body = torch.nn.Sequential(torch.nn.Linear(4, 8), middle, torch.nn.ReLU())
        self.body = torch.compile(body, backend="aot_eager") if compiled else body
        self.head = torch.nn.Linear(8, 2)

    def on_train_start(self):
        self.starts = [each.detach().clone() for each in self.parameters()]

    def loss(self, batch):
        loss = cross_entropy(self.head(self.body(batch[0])), batch[1])
        self.log("train_loss", loss, on_epoch=True)
        if self.term:
            away = sum((y - x).square().sum() for y, x in zip(self.parameters(), self.starts, strict=True))
            loss = loss + self.term / 2 * away
        return loss

    def training_step(self, batch, index):
        loss = self.loss(batch)
        if not self.automatic_optimization:
            optimizers = self.optimizers()
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in optimizers:
                optimizer.step()
            if self.scheduler:
                for scheduler in self.lr_schedulers():
                    scheduler.step()
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", cross_entropy(self.head(self.body(batch[0])), batch[1]))

    def configure_optimizers(self):
        kind = getattr(torch.optim, self.kind)
        if self.automatic_optimization:
            optimizers = [kind(self.parameters(), **self.options)]
        else:
            optimizers = [kind(self.body.parameters(), **self.options), torch.optim.Adam(self.head.parameters(), 0.01)]
        match self.scheduler:
            case None:
                return optimizers
            case {"plateau": metric}:
                scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizers[0], patience=0, threshold=0.9)
                return optimizers, [{"scheduler": scheduler, "monitor": metric}]
            case {"interval": interval}:
                made = [torch.optim.lr_scheduler.StepLR(each, 1, gamma=0.7) for each in optimizers]
                return optimizers, [{"scheduler": each, "interval": interval} for each in made]

class Unseen(Net):
    def __init__(self, outside=False):
        super().__init__(manual=True)
        self.outside = outside

    def optimizers(self):
        if self.outside:
            return [torch.optim.SGD(self.parameters(), lr=0.1)]
        return super().optimizers(use_pl_optimizer=False)

class Searching(Net):
    def training_step(self, batch, index):
        nudge = torch.zeros_like(batch[0], requires_grad=True)
        search = torch.optim.SGD([nudge], lr=0.1)
        cross_entropy(self.head(self.body(batch[0] + nudge)), batch[1]).backward(inputs=[nudge])
        search.step()
        return self.loss((batch[0] + nudge.detach(), batch[1]))

class Skipping(Net):
    def training_step(self, batch, index):
        return None if index % 2 else self.loss(batch)

class Sparse(Net):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(4, 4, sparse=True)

    def loss(self, batch):
        return cross_entropy(self.head(self.body(self.words(batch[1]))), batch[1])

class Data(pl.LightningDataModule):
    def __init__(self):
        super().__init__()
        features = torch.randn(80, 4, generator=torch.Generator().manual_seed(1))
        self.rows = TensorDataset(features, (features.sum(1) > 0).long())

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.rows, batch_size=8)

class EMA(pl.Callback):
    def __init__(self, decay=0.9):
        self.decay, self.mean = decay, None

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        now = {name: value.detach().clone() for name, value in module.named_parameters()}
        for name, value in now.items():
            now[name] = value if self.mean is None else self.decay * self.mean[name] + (1 - self.decay) * value
        self.mean = now

    def on_train_end(self, trainer, module):
        module.load_state_dict(self.mean, strict=False)

class Says(pl.Callback):
    def on_validation_epoch_end(self, trainer, module):
        module.log("said", 42.0)
"""
OTHER = """
import lightning.pytorch as pl

class Stranger(pl.Callback): ...
"""
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
COMMON = {"seed": 7, "model": "local_code.py:Net", "data": "local_code.py:Data", "data_args": {}}
EPOCHS = {"max_epochs": 3}


@pytest.fixture(scope="module", autouse=True)
def code(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    (folder / "local_code.py").write_text(CODE)
    (folder / "local_other.py").write_text(OTHER)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def base(tmp_path):
    """The first model of this model's arguments."""

    def base(**fields):
        first = Task(key=TaskKey.parse("r0000/coordinator/i1"), **{**COMMON, "model_args": {}, **fields}, trainer={})
        (tmp_path / "first").mkdir(exist_ok=True)
        perform(first, {}, tmp_path / "first", lambda _: None, 1)
        return tmp_path / "first" / "update.safetensors"

    return base


@pytest.fixture
def do(base, tmp_path):
    """Do a task as a node does it."""

    def do(key, *, trainer=EPOCHS, callbacks=(), local=None, **fields) -> Result:
        start = base(**fields)
        label = "base" if "/a" in key else "global"
        task = Task(
            key=TaskKey.parse(key),
            **{**COMMON, "model_args": {}, **fields},
            trainer={"accelerator": "cpu", "devices": 1, **trainer},
            callbacks=tuple(callbacks),
            local=local or {},
            models={label: digest(start)},
            threads=1,
        )
        (tmp_path / "task").mkdir(exist_ok=True)
        return perform(task, {label: start}, tmp_path / "task", lambda _: None, 1)

    return do


@pytest.fixture
def train(do, tmp_path):
    """Train, and return the update's tensors."""

    def train(**fields):
        result = do("r0001/n/a1", **fields)
        assert result.steps > 0
        update = Weights.open(tmp_path / "task" / "update.safetensors")
        return {name: value.clone() for name, value in update.items()}

    return train


@pytest.fixture
def train_by_lightning(base, tmp_path):
    """The same with nothing of fedctl about it."""

    def train_by_lightning(*, trainer=EPOCHS, callbacks=(), model_args=None, validates=False):
        start = base(model_args=model_args or {})
        model, data = load("local_code.py:Net")(**(model_args or {})), load("local_code.py:Data")()
        model.load_state_dict(dict(Weights.open(start)))
        pl.seed_everything(COMMON["seed"], verbose=False)
        fit = pl.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            default_root_dir=tmp_path,
            num_sanity_val_steps=0,
            callbacks=[load(each["class"])(**each["args"]) for each in callbacks],
            **{**({} if validates else {"limit_val_batches": 0}), **trainer},
        )
        fit.fit(model, data)
        return model.state_dict()

    return train_by_lightning


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def near(one, other, tolerance) -> bool:
    return all(torch.allclose(one[name], other[name], rtol=tolerance, atol=tolerance) for name in one)


def callback(name, **args):
    return {"class": f"local_code.py:{name}", "args": args}


# Whatever Lightning can do


SWA = callback("StochasticWeightAveraging", swa_lrs=0.05, swa_epoch_start=0.5)
FEATURES = {
    "plain": {},
    "adam": {"model_args": {"optimizer": "AdamW", "options": {"lr": 0.01}}},
    "momentum and decay": {"model_args": {"options": {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}}},
    "several optimizers": {"model_args": {"manual": True}},
    "accumulation": {"trainer": {**EPOCHS, "accumulate_grad_batches": 5}},
    "clipping by norm": {"trainer": {**EPOCHS, "gradient_clip_val": 0.05}},
    "clipping by value": {"trainer": {**EPOCHS, "gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}},
    "bf16-mixed": {"trainer": {**EPOCHS, "precision": "bf16-mixed"}},
    "64-true": {"trainer": {**EPOCHS, "precision": "64-true"}},
    "a scheduler by epochs": {"model_args": {"scheduler": {"interval": "epoch"}}},
    "a scheduler by steps": {"model_args": {"scheduler": {"interval": "step"}}},
    "schedulers of several optimizers": {"model_args": {"scheduler": {"interval": "step"}, "manual": True}},
    "a plateau of training": {"model_args": {"scheduler": {"plateau": "train_loss_epoch"}}},
    "torch.compile": {"model_args": {"compiled": True}},
    "SWA": {"callbacks": [SWA], "model_args": {"norm": False}},
    "SWA of batch norms": {"callbacks": [SWA]},
    "Lightning's EMA": {"callbacks": [callback("EMAWeightAveraging", decay=0.8)]},
    "an EMA of the user's own": {"callbacks": [callback("EMA", decay=0.8)]},
}
features = pytest.mark.parametrize("feature", FEATURES.values(), ids=FEATURES)


@features
def test_an_update_is_what_lightning_leaves_in_the_module(feature, train, train_by_lightning):
    update = train(**feature)
    assert same(update, train_by_lightning(**feature))
    if feature and "compiled" not in feature.get("model_args", {}):
        plain = {"norm": feature.get("model_args", {}).get("norm", True)}
        assert not same(update, train(model_args=plain)), "it makes no difference here"


def test_a_plateau_of_validation_is_trained_with_validation(train, train_by_lightning):
    plateau = {"model_args": {"scheduler": {"plateau": "val_loss"}}, "trainer": {"max_epochs": 6}}
    assert same(train(**plateau), train_by_lightning(**plateau, validates=True))


# Callbacks


def test_callbacks_are_built_anew_for_every_task(train):
    feature = {"callbacks": [callback("EMA")]}
    assert same(train(**feature), train(**feature))


def test_what_a_callback_logs_in_validation_is_in_the_score(do):
    result = do("r0000/n/e1", callbacks=[callback("Says")])
    assert result.scores["global"].metrics["said"] == 42.0


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (callback("Data"), r"local_code.py:\d+: Data is no Callback"),
        (callback("EMA", speed=1), r"EMA and task.callbacks in fed.yaml do not fit: got an unexpected .* 'speed'"),
        ({"class": "local_other.py:Stranger", "args": {}}, "a Callback of lightning.pytorch, but the model is one of"),
    ],
)
def test_a_callback_that_cannot_be_used_shows_before_a_run_begins(base, entry, sentence):
    with pytest.raises(ConfigError, match=sentence):
        base(callbacks=(entry,))


# FedProx


MU = 5.0
PROX = {"name": "fedprox", "mu": MU}


def with_term(feature):
    return {**feature, "model_args": {**feature.get("model_args", {}), "term": MU}}


# For batch norms SWA makes a pass more, at whose end Lightning 2.6 steps once again on the last gradient it had.
@pytest.mark.parametrize("feature", [name for name in FEATURES if name != "SWA of batch norms"])
def test_fedprox_trains_as_if_its_term_were_in_the_loss(feature, train):
    feature = FEATURES[feature]
    update = train(**feature, local=PROX)
    assert near(update, train(**with_term(feature)), 1e-5 if "precision" not in feature.get("trainer", {}) else 1e-3)
    assert not near(update, train(**feature), 1e-3)


def half(**scale):
    """16-mixed, which Lightning itself has on GPUs alone."""
    return {**EPOCHS, "plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", **scale))]}


@pytest.mark.parametrize("scale", [{}, {"init_scale": 2.0**24, "growth_interval": 4}], ids=["calm", "overflowing"])
def test_with_scaled_gradients_too(train, scale):
    update = train(trainer=half(**scale), local=PROX)
    assert near(update, train(trainer=half(**scale), model_args={"term": MU}), 1e-3)
    assert not near(update, train(trainer=half(**scale)), 1e-2)


@pytest.mark.parametrize("feature", [{}, {"model_args": {"manual": True}}, FEATURES["SWA"]])
def test_a_mu_of_zero_changes_no_bit(train, feature):
    assert same(train(**feature, local={"name": "fedprox", "mu": 0.0}), train(**feature))


def test_optimizers_of_other_things_than_the_model_are_let_be(train):
    searching = {"model": "local_code.py:Searching"}
    assert near(train(**searching, local=PROX), train(**with_term(searching)), 1e-5)


def test_a_batch_that_the_module_skips_is_no_step_of_the_rule(train):
    skipping = {"model": "local_code.py:Skipping"}
    assert near(train(**skipping, local=PROX), train(**with_term(skipping)), 1e-5)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model_args": {"optimizer": "LBFGS"}}, "fedprox changes gradients and not the loss, and LBFGS goes by both"),
        ({"model": "local_code.py:Unseen"}, "fedprox does not reach a step of SGD: return it from configure_optim"),
        ({"model": "local_code.py:Unseen", "model_args": {"outside": True}}, "fedprox does not reach a step of SGD"),
        ({"model": "local_code.py:Sparse"}, "fedprox needs dense gradients: make the embedding without `sparse`"),
        (
            {"model_args": {"optimizer": "Adam", "options": {"fused": True}}, "trainer": half()},
            "fedprox cannot add to scaled gradients: make Adam without `fused`",
        ),
    ],
)
def test_where_the_term_cannot_be_added_the_training_is_refused(train, fields, sentence):
    with pytest.raises(ConfigError, match=sentence):
        train(**fields, local=PROX)
    assert near(train(local=PROX), train(model_args={"term": MU}), 1e-5), "what watches for it is gone"


@pytest.fixture
def with_rule(tmp_path):
    def with_rule(rule):
        task = TaskSpec(model="local_code.py:Net", data="local_code.py:Data")
        return Federation(name="f", folder=tmp_path, task=task, nodes=(Node(name="n"),), local=rule)

    return with_rule


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (Named(name="fedprocs"), "local: there is no rule called 'fedprocs'"),
        (Named(name="fedprox", options={"nu": 1}), "local/nu: unknown option"),
        (Named(name="fedprox", options={"mu": -1}), "local/mu: should be at least 0, not -1.0"),
        (Named(name="fedprox", options={"mu": "much"}), "local/mu: should be a number, not 'much'"),
    ],
)
def test_names_and_options_are_checked_before_a_run(with_rule, rule, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build_algorithm(with_rule(rule))


@pytest.mark.parametrize("rule", [None, Named(name="fedprox"), Named(name="fedprox", options={"mu": 1})])
def test_a_rule_that_is_right_leaves_the_strategy(with_rule, rule):
    assert build_algorithm(with_rule(rule)).strategy == Mean()


@pytest.mark.parametrize(("key", "follows"), [("r0001/n/a1", True), ("r0000/n/e1", True), ("r0001/n/s1", False)])
def test_a_node_is_told_the_rule_for_all_but_its_training_alone(with_rule, key, follows):
    action = Perform(task=TaskKey.parse(key))
    task = task_of(with_rule(Named(name="fedprox", options={"mu": 0.1})), action)
    assert task.local == ({"name": "fedprox", "mu": 0.1} if follows else {})
    assert task_of(with_rule(None), action).local == {}
