"""Trainings that end early: by the deadline, and when the node's owner wants the machine back."""

import sys
import time

import pytest

from fedctl.durable import digest
from fedctl.errors import Declined
from fedctl.federation import When
from fedctl.node.trainers.lightning import perform
from fedctl.records import Result, Task, TaskKey
from fedctl.weights import Weights

CODE = """
import time
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

class Net(pl.LightningModule):
    def __init__(self, pace=0.0, optimizers=1, plateau=False):
        super().__init__()
        self.pace, self.optimizers_there, self.plateau = pace, optimizers, plateau
        self.automatic_optimization = optimizers == 1
        self.layer = torch.nn.Linear(4, 2)

    def training_step(self, batch, index):
        time.sleep(self.pace)
        loss = torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True)
        if not self.automatic_optimization:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
        return loss

    def validation_step(self, batch, index):
        time.sleep(self.pace)
        self.log("val_loss", torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1]))

    def configure_optimizers(self):
        if self.optimizers_there == 2:
            return [torch.optim.SGD([part], 0.1) for part in self.layer.parameters()]
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        if not self.plateau:
            return optimizer
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}

class Data(pl.LightningDataModule):
    def __init__(self, rows=80):
        super().__init__()
        features = torch.randn(rows, 4, generator=torch.Generator().manual_seed(1))
        self.rows = TensorDataset(features, (features.sum(1) > 0).long())

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.rows, batch_size=8)
"""
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

PACE = 0.05
"""Seconds of a batch in a training that is to be cut."""
LONG = {"max_epochs": 1000}


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    (folder / "slowly.py").write_text(CODE)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def train(code, tmp_path):
    """Train, here and now."""

    def train(key="r0001/alice/a1", *, trainer=LONG, model_args=None, data_args=None, **fields) -> Result:
        common = {
            "seed": 7,
            "model": "slowly.py:Net",
            "model_args": {"pace": PACE, **(model_args or {})},
            "data": "slowly.py:Data",
        }
        first = Task(key=TaskKey.parse("r0000/coordinator/i1"), **common, data_args={}, trainer={})
        (tmp_path / "first").mkdir(exist_ok=True)
        perform(first, {}, tmp_path / "first", lambda _: None, 1)
        base = tmp_path / "first" / "update.safetensors"
        trainer = {"accelerator": "cpu", "devices": 1, **trainer}
        label = "base" if key.endswith("a1") else "global"
        task = Task(
            key=TaskKey.parse(key),
            **common,
            data_args=data_args or {},
            trainer=trainer,
            models={label: digest(base)},
            threads=1,
            **fields,
        )
        (tmp_path / "task").mkdir(exist_ok=True)
        return perform(task, {label: base}, tmp_path / "task", lambda _: None, 1)

    return train


@pytest.mark.parametrize(
    "trainer",
    [
        LONG,
        {"max_steps": 100_000},
        {**LONG, "min_epochs": 900},
        {**LONG, "min_steps": 90_000},
        {**LONG, "accumulate_grad_batches": 4},
        {**LONG, "val_check_interval": 5},
        {**LONG, "limit_train_batches": 3},
    ],
    ids=", ".join,
)
def test_after_its_seconds_a_training_hands_in_what_it_has_done(train, trainer):
    began = time.monotonic()
    result = train(trainer=trainer, seconds=0.8)
    assert time.monotonic() - began < 30
    assert result.partial
    assert 1 <= result.steps <= 0.8 / PACE
    assert result.update is not None
    assert result.metrics["train_loss"] > 0


def test_the_examples_are_those_of_one_pass_or_of_what_was_seen_of_it(train):
    assert train(seconds=1.2).examples == 80
    cut = train(seconds=0.01, data_args={"rows": 8000})
    assert (cut.steps, cut.examples) == (1, 8)


def test_at_least_one_step_is_done(train):
    result = train(seconds=0.0, trainer={**LONG, "accumulate_grad_batches": 4})
    assert (result.steps, result.partial, result.examples) == (1, True, 32)


def test_steps_of_several_optimizers_all_count(train):
    result = train(seconds=0.01, model_args={"optimizers": 2})
    assert (result.steps, result.partial) == (2, True)


def test_a_training_that_needs_validation_is_cut_too(train):
    result = train(seconds=0.01, model_args={"plateau": True})
    assert (result.steps, result.partial) == (1, True)


@pytest.mark.parametrize("trainer", [{"max_epochs": 1}, {"max_epochs": 2, "max_steps": 20}, {"max_steps": 10}])
def test_a_training_that_was_at_its_end_anyway_is_whole(train, trainer):
    result = train(trainer={**trainer, "limit_train_batches": 1.0}, seconds=100.0, model_args={"pace": 0.0})
    assert (result.partial, result.steps) == (False, 20 if trainer.get("max_epochs") == 2 else 10)
    last = train(trainer={"max_epochs": 1, "limit_train_batches": 1}, seconds=0.0)
    assert (last.partial, last.steps) == (False, 1)


def test_seconds_that_suffice_change_no_bit(train, tmp_path):
    calm = train(trainer={"max_epochs": 2}, model_args={"pace": 0.0})
    timed = train(trainer={"max_epochs": 2}, model_args={"pace": 0.0}, seconds=300.0)
    windowed = train(trainer={"max_epochs": 2}, model_args={"pace": 0.0}, when=When(days=tuple(range(7))).to_json())
    assert calm.update == timed.update == windowed.update
    assert Weights.open(tmp_path / "task/update.safetensors")
    assert not windowed.partial


# The owner


@pytest.fixture
def closing(monkeypatch):
    """Hours that end in so many seconds, by a clock that is in a zone of its own."""

    def closing(seconds: float) -> dict:
        shift = round(60 - seconds - time.time() % 60) % 60
        monkeypatch.setenv("TZ", f"FED-00:00:{shift:02d}")
        time.tzset()
        now = time.localtime()
        minute = now.tm_hour * 60 + now.tm_min
        return When(hours=((minute, (minute + 1) % 1440),)).to_json()

    yield closing
    monkeypatch.undo()
    time.tzset()


def test_when_its_hours_end_a_partial_training_hands_in_what_it_has_done(train, closing):
    result = train(when=closing(3), partial=True)
    assert result.partial
    assert result.steps >= 1
    assert result.error is None


def test_when_its_hours_end_any_other_training_comes_to_nothing(train, closing):
    with pytest.raises(Declined, match="outside its hours until") as caught:
        train(when=closing(3))
    assert 80_000 < caught.value.seconds <= 86_400


def test_when_its_hours_end_so_does_an_evaluation(train, closing):
    with pytest.raises(Declined, match="outside its hours until"):
        train("r0000/alice/e1", when=closing(3), data_args={"rows": 8000})


def test_outside_its_hours_nothing_is_begun(train, closing, tmp_path):
    when = closing(5)
    (begin, _) = when["hours"][0]
    with pytest.raises(Declined):
        train(when={**when, "hours": [[(begin + 120) % 1440, (begin + 180) % 1440]]}, partial=True)
    assert not (tmp_path / "task/update.safetensors").exists()


def test_a_reason_that_reads_like_lightnings_words_starts_no_second_training(train, tmp_path, monkeypatch):
    command, log = tmp_path / "idle", tmp_path / "log"
    lines = (
        "#!/bin/sh",
        f"echo asked >> {log}",
        f"test $(wc -l < {log}) -lt 3 && exit 0",
        "echo mains not available",
        "exit 1",
    )
    command.write_text("\n".join(lines))
    command.chmod(0o755)
    monkeypatch.setattr("fedctl.node.window.ASK_AGAIN_S", 0.0)
    with pytest.raises(Declined, match="mains not available"):
        train(when=When(command=(str(command),)).to_json())
    assert log.read_text().count("asked") == 3
