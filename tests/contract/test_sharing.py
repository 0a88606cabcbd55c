"""Rounds that share a part of a model: the real trainer and the coordinator's arithmetic beside loops by hand.

Nodes `a` and `b` disagree about what is which class, so no two of their tensors are ever alike. A federation's rounds
are words: "ab" has both take part, "aB" has the update of `b` come to nothing, as one that was late or refused does.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedctl import topology
from fedctl.aggregation import aggregate_round
from fedctl.arrival import Arrival
from fedctl.codecs.pipeline import Pipeline
from fedctl.division import check_share
from fedctl.durable import digest
from fedctl.errors import ConfigError
from fedctl.federation import Federation, Named, Node, Schedule, TaskSpec
from fedctl.node import keep
from fedctl.node.trainers.lightning import perform
from fedctl.operations.algorithm import build_algorithm
from fedctl.records import Task, TaskKey
from fedctl.share import EVERYTHING, Share
from fedctl.strategies import build
from fedctl.weights import Weights

CODE = """
import pytorch_lightning as pl
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

class Net(pl.LightningModule):
    def __init__(self, tied=False):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh())
        self.head = torch.nn.Linear(8, 2)
        if tied:
            self.other = torch.nn.Linear(8, 2)
            self.other.weight = self.head.weight

    def forward(self, rows):
        return self.head(self.body(rows))

    def training_step(self, batch, index):
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class Rows(pl.LightningDataModule):
    def __init__(self, sign=1):
        super().__init__()
        rows = torch.randn(40, 4, generator=torch.Generator().manual_seed(3))
        self.rows = TensorDataset(rows, (sign * rows[:, 0] > 0).long())

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=8)
"""
COMMON = {"seed": 7, "model": "sharing_code.py:Net", "model_args": {}, "data": "sharing_code.py:Rows"}
SIGNS = {"a": 1, "b": -1}
BODY = Share(every=(("body.*", 3),))
EXACT = ([], ["delta"], ["zstd"], ["delta", "zstd"])
LOSSY = (
    ["int4"],
    ["delta", "int4", "zstd"],
    ["delta", {"name": "topk", "keep": 0.2, "whole": 0}, "int8"],
    ["delta", "bf16", "zstd"],
)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

Model = Mapping[str, Tensor]


@pytest.fixture(scope="module", autouse=True)
def code(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    (folder / "sharing_code.py").write_text(CODE)
    sys.path.insert(0, str(folder))
    torch.set_num_threads(1)
    yield folder
    sys.path.remove(str(folder))


@dataclass
class Rounds:
    """A federation without a line: nodes train here, and what they hand in is read and averaged as in a run."""

    folder: Path
    share: Share = EVERYTHING
    up: Sequence[Mapping[str, object]] = ()
    strategy: Named = Named(name="fedavg")
    kept: dict[str, TaskKey] = field(default_factory=dict)
    number: int = 0

    def __post_init__(self) -> None:
        self.perform(TaskKey(round=0, node="coordinator", kind="initialize"), {}, {})
        (self.folder / "r0000-coordinator-i1/update.safetensors").rename(self.path(0))

    def perform(self, key: TaskKey, models: Mapping[str, Path], data_args: Mapping[str, object]) -> None:
        (self.folder / key.folder).mkdir()
        task = Task(
            key=key,
            **COMMON,
            data_args=data_args,
            trainer={"accelerator": "cpu", "devices": 1, "max_epochs": 1} if models else {},
            models={label: digest(path) for label, path in models.items()},
            codec={"up": list(self.up)},
            share={} if self.share == EVERYTHING else self.share.to_json(),
            kept=self.kept.get(key.node),
        )
        perform(task, models, self.folder / key.folder, lambda _: None, 1)

    def round(self, word: str) -> dict[str, Model]:
        """One round; what each node's update that counted stands for, and what it was when it travelled."""
        self.number += 1
        updates = {node.lower(): self.turn(node.lower()) for node in word}
        counted = {node: (updates[node], 40) for node in updates if node in word}
        memory = self.folder / f"memory-{self.number - 1}.safetensors"
        aggregate_round(
            self.path(self.number - 1),
            counted,
            memory=memory if memory.exists() else None,
            strategy=build(self.strategy),
            model_out=self.path(self.number),
            memory_out=self.folder / f"memory-{self.number}.safetensors",
            steps=dict.fromkeys(counted, 5),
            share=self.share,
            round=self.number,
        )
        self.kept |= {node: TaskKey(round=self.number, node=node) for node in counted}
        return {node: dict(Weights.open(path)) for node, (path, _) in counted.items()}

    def turn(self, node: str) -> Path:
        """A node trains, and its update is read."""
        key = TaskKey(round=self.number, node=node)
        self.perform(key, {"base": self.path(self.number - 1)}, {"sign": SIGNS[node]})
        made, update = self.folder / key.folder / "update.safetensors", self.folder / f"sent-{key.folder}.safetensors"
        arrival = Arrival(
            model=self.path(self.number - 1),
            share=self.share,
            round=self.number,
            pipeline=Pipeline.of(self.up),
            seed=COMMON["seed"],
            controls=False,
            farthest=1000.0,
        )
        self.travelled = set(Weights.open(made))
        if arrival.is_coded:
            arrival.decode(made, update)
        else:
            made.rename(update)
        arrival.check(update)
        return update

    def path(self, number: int) -> Path:
        return self.folder / f"model-{number}.safetensors"

    def model(self, number: int) -> Model:
        return dict(Weights.open(self.path(number)))

    def left(self, node: str) -> keep.Kept:
        """What a node's newest training that counted has left there."""
        key = self.kept[node]
        found = keep.load(self.folder, Task(key=key, kept=key, **COMMON, data_args={}, trainer={}))
        assert found is not None
        return found


def by_hand(first: Model, words: Sequence[str], due: Callable[[int], set[str]], step: Callable | None = None):
    """The model of each round, as one would write it down: `own` is what each node goes on with in place of it."""
    model, own, models = first, {node: {} for node in SIGNS}, [first]
    for number, word in enumerate(words, start=1):
        ends = {node: trained({**model, **own[node]}, SIGNS[node]) for node in word if node.islower()}
        now = due(number)
        ahead = {node: {**own[node], **ends.get(node, {})} for node in own}
        own = {node: {name: one for name, one in many.items() if name not in now} for node, many in ahead.items()}
        means = {name: mean([end[name] for end in ends.values()]) for name in now}
        model = {**model, **(step(model, means) if step else means)}
        models.append(model)
    return models


def trained(start: Model, sign: int) -> Model:
    """An epoch of plain torch."""
    from sharing_code import Net, Rows

    net = Net()
    net.load_state_dict(dict(start))
    optimizer = net.configure_optimizers()
    for index, batch in enumerate(Rows(sign).train_dataloader()):
        optimizer.zero_grad()
        net.training_step(batch, index).backward()
        optimizer.step()
    return {name: one.detach().clone() for name, one in net.state_dict().items()}


def mean(tensors: Sequence[Tensor]) -> Tensor:
    whole = torch.stack(list(tensors))
    return whole.double().mean(0).float() if whole.is_floating_point() else whole.amax(0)


def nesterov(lr: float = 0.7, momentum: float = 0.9) -> Callable[[Model, Model], Model]:
    """DiLoCo's outer step, with a velocity for each tensor that was ever due."""
    velocity: dict[str, Tensor] = {}

    def step(model: Model, means: Model) -> Model:
        moved = {name: one for name, one in means.items() if not name.endswith(STATISTICS)}
        gradients = {name: model[name].double() - one.double() for name, one in moved.items()}
        for name, gradient in gradients.items():
            velocity[name] = momentum * velocity.get(name, 0.0) + gradient
        ends = {name: model[name] - lr * (one + momentum * velocity[name]) for name, one in gradients.items()}
        return {**means, **{name: end.float() for name, end in ends.items()}}

    return step


def close(one: Model, other: Model) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], 0, 1e-6) for name in one)


def stages(*names) -> list[Mapping[str, object]]:
    return [one if isinstance(one, dict) else {"name": one} for one in names]


def names_of(codecs) -> str:
    return "+".join(one if isinstance(one, str) else one["name"] for one in codecs) or "none"


# Periods


WORDS = {
    "both": ["ab"] * 7,
    "missing": ["ab", "ab", "a", "ab", "a", "ab", "aB", "ab", "aB", "ab"],
    "apart": ["a", "b", "a", "a", "b", "b", "ab", "A" + "b", "a", "ab"],
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_tensors_that_wait_go_on_at_home_and_are_taken_over_when_a_round_shares_them(tmp_path, words):
    """Also on a node that missed the round that did, and one whose own update of it came to nothing."""
    rounds = Rounds(tmp_path, BODY)
    names = rounds.model(0).keys()
    rare = {name for name in names if name.startswith("body.")}
    expected = by_hand(rounds.model(0), words, lambda number: names - (rare if number % 3 else set()))
    for number, word in enumerate(words, start=1):
        updates = rounds.round(word)
        due = names if number % 3 == 0 else names - rare
        assert all(update.keys() == due for update in updates.values())
        assert all(rounds.left(node).waiting.keys() == names - due for node in updates)
        assert close(rounds.model(number), expected[number]), number
    assert not torch.equal(rounds.model(7)["body.0.weight"], rounds.model(0)["body.0.weight"])


@pytest.mark.parametrize("up", EXACT, ids=names_of)
def test_codecs_that_lose_nothing_change_nothing_about_it(tmp_path, up):
    """Nor does a least change that everything passes."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "coded").mkdir()
    plain = Rounds(tmp_path / "plain", BODY)
    coded = Rounds(tmp_path / "coded", Share(every=BODY.every, change=1e-12), stages(*up))
    for number, word in enumerate(["ab", "a", "ab", "ab"], start=1):
        plain.round(word)
        coded.round(word)
        assert digest(plain.path(number)) == digest(coded.path(number))


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "diloco", "fedadam", "norm-clip", "median"])
def test_rounds_may_share_nothing_at_all(tmp_path, name):
    """Nodes train on, the model stays, and what a strategy remembers is there when it is wanted again."""
    rounds = Rounds(tmp_path, Share(every=(("*", 2),)), strategy=Named(name=name))
    for word in ("ab", "ab", "ab"):
        rounds.round(word)
    assert digest(rounds.path(1)) == digest(rounds.path(0))
    assert digest(rounds.path(3)) == digest(rounds.path(2)) != digest(rounds.path(1))
    memories = [tmp_path / f"memory-{number}.safetensors" for number in (2, 3)]
    assert memories[0].exists() == memories[1].exists() == (name in ("fedavgm", "diloco", "fedadam"))
    if memories[0].exists():
        assert digest(memories[0]) == digest(memories[1])


# Fragments


def test_fragments_travel_in_turn_with_a_velocity_of_their_own(tmp_path):
    """By hand: body.0 has 160 bytes, body.1 136, head 72, and so the two smaller ones are together."""
    rounds = Rounds(tmp_path, Share(fragments=2), strategy=Named(name="diloco"))
    names, words = rounds.model(0).keys(), ["ab", "ab", "b", "ab", "aB", "ab", "ab"]
    first = {"body.0.weight", "body.0.bias"}
    expected = by_hand(rounds.model(0), words, lambda number: first if number % 2 else names - first, nesterov())
    for number, word in enumerate(words, start=1):
        updates = rounds.round(word)
        assert all(update.keys() == (first if number % 2 else names - first) for update in updates.values())
        assert close(rounds.model(number), expected[number]), number
    remembered = {name.removesuffix("/momentum_buffer") for name in Weights.open(tmp_path / "memory-7.safetensors")}
    moved = {name for name in names if not name.endswith(STATISTICS)}
    assert remembered == moved | {f"{name}/steps" for name in moved}


def test_momentum_of_a_tensor_that_waits_is_not_forgotten(tmp_path):
    rounds = Rounds(tmp_path, Share(every=(("body.*", 3), ("*", 2))), strategy=Named(name="diloco"))
    names, words = rounds.model(0).keys(), ["ab"] * 9
    body = {name for name in names if name.startswith("body.")}

    def due(number: int) -> set[str]:
        return (body if number % 3 == 0 else set()) | (names - body if number % 2 == 0 else set())

    expected = by_hand(rounds.model(0), words, due, nesterov())
    for number, word in enumerate(words, start=1):
        rounds.round(word)
        assert close(rounds.model(number), expected[number]), number


def test_an_optimizer_counts_the_steps_of_each_tensor(tmp_path):
    """Adam's first step of a tensor is `lr` long in each coordinate that moved, whichever round it is first due in."""
    adam = Named(name="fedadam", options={"lr": 0.01, "tau": 1e-12})
    rounds = Rounds(tmp_path, Share(every=(("body.*", 4),)), strategy=adam)
    for _ in range(4):
        rounds.round("ab")
    moved = rounds.model(4)["body.0.weight"] - rounds.model(0)["body.0.weight"]
    assert torch.allclose(moved.abs(), torch.full_like(moved, 0.01), atol=1e-5)


# Changes


@pytest.mark.parametrize("period", [1, 2])
@pytest.mark.parametrize("up", [*EXACT, *LOSSY], ids=names_of)
def test_what_waits_and_what_is_lost_comes_over_in_the_end(tmp_path, up, period):
    """For each tensor and node: the sum of what was sent, and what it has not brought over, is the sum of changes."""
    least = 0.08
    rounds = Rounds(tmp_path, Share(every=(("body.*", period),), change=least), stages(*up))
    pipeline = Pipeline.of(stages(*up))
    names = rounds.model(0).keys()
    sent, changed = ({node: dict.fromkeys(names, 0.0) for node in SIGNS} for _ in range(2))
    seen = set()
    for number in range(1, 7):
        base = rounds.model(number - 1)
        before = {node: rounds.left(node) if node in rounds.kept else keep.Kept() for node in SIGNS}
        updates = rounds.round("ab")
        for node, update in updates.items():
            end = trained({**base, **(before[node].waiting if (number - 1) % period else {})}, SIGNS[node])
            assert update.keys() == {name for name in names if number % period == 0 or not name.startswith("body.")}
            for name in update:
                change = end[name].double() - base[name].double()
                owed = change + before[node].residual.get(name, torch.zeros(())).double()
                waits = not name.endswith(STATISTICS) and bool(owed.norm() < least * base[name].double().norm())
                seen.add(waits)
                assert not waits or torch.equal(update[name], base[name]), "as it was, to the bit"
                assert waits or not torch.equal(update[name], base[name])
                changed[node][name] += change
                sent[node][name] += update[name].double() - base[name].double()
            residual = rounds.left(node).residual
            idle = names - update.keys()
            assert all(torch.equal(residual[name], before[node].residual[name]) for name in idle & residual.keys())
    assert seen == {True, False}
    for node in SIGNS:
        residual = rounds.left(node).residual
        for name in names:
            over = sent[node][name] + residual.get(name, torch.zeros(())).double()
            assert torch.allclose(torch.as_tensor(over), torch.as_tensor(changed[node][name]), 0, 2e-6), (node, name)
    assert pipeline.is_lossy == (up in LOSSY)


def test_a_tensor_that_waits_for_a_larger_change_takes_no_bytes(tmp_path):
    rounds = Rounds(tmp_path, Share(change=0.5))
    rounds.round("a")
    assert rounds.travelled == {f"body.1.{name}" for name in STATISTICS} | {"body.1.bias"}
    assert rounds.model(1).keys() == rounds.model(0).keys()


@pytest.mark.parametrize("name", ["fedavgm", "diloco", "fedadam", "median", "norm-clip", "fednova"])
def test_strategies_take_what_waits_as_unchanged(tmp_path, name):
    """With one node, and a threshold that holds its weights back, those of the model stay where they are."""
    rounds = Rounds(tmp_path, Share(change=0.5), strategy=Named(name=name))
    rounds.round("a")
    for held in ("body.0.weight", "head.weight"):
        assert torch.equal(rounds.model(1)[held], rounds.model(0)[held])
    assert not torch.equal(rounds.model(1)["body.1.bias"], rounds.model(0)["body.1.bias"]), "which was 0"


# What cannot be


def federation(**fields) -> Federation:
    nodes = tuple(Node(name=name) for name in SIGNS)
    return Federation(name="f", folder=Path(), task=TaskSpec(model="m.py:M", data="d.py:D"), nodes=nodes, **fields)


@pytest.mark.parametrize("share", [BODY, Share(fragments=2)], ids=["every", "fragments"])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"strategy": Named(name="scaffold")}, "scaffold corrects every step by all of the model"),
        ({"strategy": Named(name="feddyn")}, "feddyn corrects every step by all of the model"),
        ({"schedule": Schedule(mode="buffered")}, "updates of a model began in different rounds"),
    ],
)
def test_what_needs_the_whole_model_each_round_is_refused(fields, said, share):
    with pytest.raises(ConfigError, match=said):
        build_algorithm(federation(share=share, **fields))


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (Share(every=(("body.*", 2), ("haed.*", 3))), r"no tensor of the model matches `haed.\*`"),
        (Share(kept=("*",)), "no tensor of the model is left to share"),
        (Share(fragments=4), "a model of 3 modules cannot be divided into 4 fragments"),
        (Share(kept=("head.*",), fragments=3), "a model of 2 modules cannot be divided into 3 fragments"),
    ],
)
def test_a_share_has_to_fit_the_model(tmp_path, share, said):
    model = Rounds(tmp_path).path(0)
    check_share(model, Share(fragments=3, every=(("body.*", 2),)))
    with pytest.raises(ConfigError, match=said):
        check_share(model, share)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('share: {every: {"head.*": 0}}', "should be patterns of names of tensors with whole numbers from 1"),
        ("share: {every: [head]}", "should be patterns of names of tensors with whole numbers from 1"),
        ("share: {change: 1}", "should be a number from 0 and below 1"),
        ("strategy: {name: diloco, fragments: 0}", "should be 1 or more, not 0"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(tmp_path, line, said):
    for file, name in (("m.py", "M"), ("d.py", "D")):
        (tmp_path / file).write_text(f"class {name}: pass\n")
    (tmp_path / "fed.yaml").write_text(
        f"name: f\ntask: {{model: m.py:M, data: d.py:D}}\n{line}\nnodes: [{{name: a}}]\n"
    )
    with pytest.raises(ConfigError, match=said):
        build_algorithm(topology.load(tmp_path / "fed.yaml"))


def test_a_strategy_divides_the_model():
    built = build_algorithm(federation(strategy=Named(name="diloco", options={"fragments": 4})))
    assert built.federation.share == Share(fragments=4)
    assert built.federation.keeps
    clipped = Named(name="norm-clip", options={"rule": {"name": "diloco", "fragments": 4}})
    assert build_algorithm(federation(strategy=clipped)).federation.share == Share(fragments=4)


@pytest.mark.parametrize("share", [Share(every=(("other.*", 2),)), Share(fragments=2)], ids=["every", "fragments"])
def test_one_tensor_under_two_names_travels_at_one_time(tmp_path, monkeypatch, share):
    """body.0 and other are in one fragment, body.1 and head in the other."""
    monkeypatch.setitem(COMMON, "model_args", {"tied": True})
    with pytest.raises(ConfigError, match=r"`head.weight` and `other.weight` are one tensor"):
        Rounds(tmp_path, share)
