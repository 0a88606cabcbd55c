"""A node's part in secure aggregation, over real tasks in real folders: it answers once, and trusts no coordinator."""

import json
import os
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedctl.durable import digest
from fedctl.errors import ConfigError
from fedctl.masked import VECTOR, Layout
from fedctl.node.trainers import masking
from fedctl.node.trainers.code import load
from fedctl.node.trainers.lightning import perform
from fedctl.privacy import Privacy, SecureAggregation
from fedctl.records import Blob, Result, Task, TaskKey
from fedctl.secagg import coordinator, node
from fedctl.secagg.keys import Identity, fingerprint
from fedctl.secagg.messages import Agreement, Cohort, Revealed, Sealed, Survivors
from fedctl.secagg.place import Place
from fedctl.terms import terms_of
from fedctl.weights import Weights, save

CODE = """
import pytorch_lightning as pl
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.body = torch.nn.Linear(4, 2)
        self.register_buffer("seen", torch.tensor(0))

    def training_step(self, batch, index):
        self.seen += 1
        return cross_entropy(self.body(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)

class Frozen(Net):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

class Data(pl.LightningDataModule):
    def __init__(self, count):
        super().__init__()
        x = torch.randn(count, 4, generator=torch.Generator().manual_seed(count))
        self.rows = TensorDataset(x, (x.sum(1) > 0).long())

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=8)
"""
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
IDENTITY = "c0ffee" * 5
NAMES = ("alice", "bob", "carol", "dave")
EXAMPLES = dict(zip(NAMES, (16, 24, 40, 64), strict=True))
SECURE = SecureAggregation(range=4.0, examples=100)


@pytest.fixture(scope="module", autouse=True)
def code(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    (folder / "masking_code.py").write_text(CODE)
    sys.path.insert(0, str(folder))
    before = os.umask(0o077)  # as the agent has it, and all that it starts
    yield folder
    os.umask(before)
    sys.path.remove(str(folder))


@dataclass
class Round:
    """A round over nodes whose homes are below `base`; what a coordinator asks of them goes through whole tasks."""

    base: Path
    names: tuple[str, ...] = NAMES
    number: int = 1
    owners: dict[str, dict] = field(default_factory=dict)
    said: dict[str, dict] = field(default_factory=dict)
    cohort: Cohort | None = None
    trained: dict[str, Result] = field(default_factory=dict)
    sum: np.ndarray | None = None
    terms: bytes = b""

    def run(self, name: str) -> Path:
        """The run's folder on a node, with its id as the agent writes it."""
        folder = self.base / name / "runs" / "toy"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "id").write_text(f"{IDENTITY} machine")
        return folder

    def ask(self, kind: str, name: str, message: dict, attempt: int = 1, **fields) -> Result:
        """Have a node do a task, as its worker does; a refusal is a ConfigError."""
        key = TaskKey(round=self.number, node=name, kind=kind, attempt=attempt)
        folder = self.run(name) / key.folder
        folder.mkdir(exist_ok=True)
        if name in self.owners:
            (folder / "owner.json").write_text(json.dumps(self.owners[name]))
        task = Task(
            key=key,
            seed=7,
            model=fields.pop("model", "masking_code.py:Net"),
            model_args={},
            data="masking_code.py:Data",
            data_args={"count": EXAMPLES.get(name, 8)},
            threads=1,
            models={"base": self.model} if kind == "train" else {},
            message=json.loads(json.dumps(message)),
            **{
                "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 1},
                "privacy": Privacy(secure_aggregation=SECURE).to_json(),
                **fields,
            },
        )
        if kind == "train":
            self.terms = self.terms or terms_of(task, "")
        result = perform(task, {"base": self.base / "base.safetensors"}, folder, lambda _: None, 1)
        return Result.from_json(json.loads(json.dumps(result.to_json())))

    @property
    def model(self) -> Blob:
        path = self.base / "base.safetensors"
        if not path.exists():
            save(path, {name: one.clone() for name, one in load("masking_code.py:Net")().state_dict().items()})
        return digest(path)

    def each(self, kind: str, message, *names: str) -> "Round":
        self.said[kind] = {name: dict(self.ask(kind, name, message(name)).message) for name in names or self.names}
        return self

    def keys(self) -> "Round":
        self.each("keys", lambda _: {})
        self.cohort = self.gathered(self.names)
        return self

    def gathered(self, names) -> Cohort:
        adverts = [coordinator.check_advert(self.said["keys"][n], IDENTITY, self.number, n) for n in names]
        return coordinator.cohort_of(IDENTITY, self.number, adverts, share=SECURE.threshold)

    def shares(self) -> "Round":
        return self.each("shares", lambda _: {"cohort": self.cohort.to_json()})

    def inbox(self, name: str) -> dict:
        sealed = {sender: Sealed.from_json(said) for sender, said in self.said["shares"].items()}
        return {"inbox": coordinator.inbox_of(self.cohort, name, sealed).to_json(), "ranges": None, "most": 100}

    def train(self, *names: str) -> "Round":
        self.trained = {name: self.ask("train", name, self.inbox(name)) for name in names or self.names}
        return self

    def agree(self) -> "Round":
        return self.each("agree", lambda _: {"survivors": {"nodes": sorted(self.trained)}}, *self.trained)

    def agreement(self) -> dict:
        survivors = tuple(sorted(self.trained))
        signatures = {
            name: coordinator.check_signed(said, self.cohort, name, self.names, survivors)
            for name, said in self.said["agree"].items()
        }
        return {"agreement": Agreement(nodes=survivors, signatures=signatures).to_json()}

    def total(self) -> np.ndarray:
        survivors = sorted(self.trained)
        self.each("unmask", lambda _: self.agreement(), *survivors)
        revealed = {name: Revealed.from_json(said) for name, said in self.said["unmask"].items()}
        vectors = [self.row(name) for name in survivors]
        return coordinator.unmask_sum(self.cohort, self.names, survivors, vectors, revealed, self.terms)

    def row(self, name: str, attempt: int = 1) -> np.ndarray:
        return Weights.open(self.file(name, attempt))[VECTOR].numpy()

    def file(self, name: str, attempt: int = 1) -> Path:
        key = TaskKey(round=self.number, node=name, attempt=attempt)
        return self.run(name) / key.folder / "update.safetensors"


@pytest.fixture
def dealt(tmp_path) -> Round:
    """Keys and shares are out."""
    return Round(tmp_path).keys().shares()


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Round:
    """A whole round, of which dave dropped out after the shares; to look at, and not to change."""
    played = Round(tmp_path_factory.mktemp("done")).keys().shares().train(*NAMES[:3]).agree()
    played.sum = played.total()
    return played


def refused(why: str, ask) -> None:
    with pytest.raises(ConfigError, match=f"secure aggregation: .*{why}"):
        ask()


def test_the_sum_is_that_of_the_survivors_updates_by_their_examples(done, tmp_path):
    """As plain trainings of the same seed give them."""
    layout = Layout(spec=Weights.open(done.base / "base.safetensors").spec, cohort=4, range=4.0, most=100)
    ways, counted = layout.decode(done.sum)
    assert counted == 16 + 24 + 40
    wanted = dict.fromkeys(layout.names, 0.0)
    base = dict(Weights.open(done.base / "base.safetensors"))
    for name in NAMES[:3]:
        task = Task(
            key=TaskKey(round=1, node=name),
            seed=7,
            model="masking_code.py:Net",
            model_args={},
            data="masking_code.py:Data",
            data_args={"count": EXAMPLES[name]},
            trainer={"accelerator": "cpu", "devices": 1, "max_epochs": 1},
            threads=1,
            models={"base": done.model},
        )
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        result = perform(task, {"base": done.base / "base.safetensors"}, folder, lambda _: None, 1)
        assert result.examples == EXAMPLES[name]
        for tensor, update in Weights.open(folder / "update.safetensors").items():
            if tensor in wanted:
                wanted[tensor] += (update - base[tensor]).double().numpy().ravel() * EXAMPLES[name] / 100
    for tensor, way in ways.items():
        np.testing.assert_allclose(way, wanted[tensor], atol=3 * layout.scale(tensor).step)
        assert np.abs(way).max() > 0.01


def test_a_training_tells_nothing_but_its_row(done):
    for name, result in done.trained.items():
        assert (result.examples, result.steps, result.metrics, result.scores) == (0, 0, {}, {})
        assert result.tensors == ("body.bias", "body.weight")
        assert set(Weights.open(done.file(name))) == {VECTOR}


def test_secrets_are_for_their_owner_alone(done):
    for name in NAMES:
        folder = done.run(name) / "secagg"
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
        identity = done.base / name / "identity"
        assert identity.stat().st_mode & 0o777 == 0o700
        assert (identity / name).stat().st_mode & 0o777 == 0o600


def test_secrets_are_forgotten_in_the_order_in_which_they_lose_their_use(done, tmp_path):
    for name in NAMES[:3]:
        assert json.loads((done.run(name) / "secagg" / f"r0001-{name}.json").read_text())["private"] is None
    later = replace(done, base=tmp_path / "base", number=2, said={})
    shutil.copytree(done.base, later.base)
    before = {name: (later.run(name) / "secagg").glob("r0001*") for name in NAMES}
    assert all(list(files) for files in before.values())
    later.keys()
    for name in NAMES:
        assert not list((later.run(name) / "secagg").glob("r0001*"))
        assert list((later.run(name) / "secagg").glob("r0002*"))


@pytest.mark.parametrize("kind", ["keys", "shares", "agree", "unmask"])
def test_asked_once_more_a_node_answers_the_same(done, kind):
    """Also under another attempt's key, of another worker."""
    message = {
        "keys": {},
        "shares": {"cohort": done.cohort.to_json()},
        "agree": {"survivors": {"nodes": list(NAMES[:3])}},
        "unmask": done.agreement(),
    }[kind]
    if kind == "shares":
        assert done.ask(kind, "alice", message, attempt=2).message == done.said[kind]["alice"]
        return
    for attempt in (1, 2):
        assert done.ask(kind, "alice", message, attempt=attempt).message == done.said[kind]["alice"]


def test_a_second_training_of_a_round_hands_out_the_same_file_and_trains_nothing(dealt):
    dealt.train("alice")
    first = dealt.trained["alice"]
    second = dealt.ask("train", "alice", {"inbox": {"sharers": ["mallory"], "shares": {}}}, attempt=2)
    assert (second.update, second.tensors) == (first.update, first.tensors)
    assert dealt.file("alice", 2).read_bytes() == dealt.file("alice").read_bytes()
    assert second.accelerator == "", "there was no second training"


def test_a_training_that_failed_is_done_anew_with_the_same_secrets(dealt):
    """Nothing was masked yet: the masks are for one row, and there is none."""
    told = dealt.inbox("alice")
    masking.prepare(task_of(dealt, "alice", told), dealt.run("alice") / "r0001-alice-a1")
    result = dealt.ask("train", "alice", told, attempt=2)
    assert result.update == digest(dealt.file("alice", 2))


def task_of(played: Round, name: str, message: dict) -> Task:
    key = TaskKey(round=played.number, node=name)
    (played.run(name) / key.folder).mkdir(exist_ok=True)
    privacy = Privacy(secure_aggregation=SECURE).to_json()
    empty = {"model_args": {}, "data_args": {}, "trainer": {}}
    return Task(key=key, seed=7, model="m", data="d", message=message, privacy=privacy, **empty)


def test_without_its_keys_a_node_takes_no_part(tmp_path):
    played = Round(tmp_path).keys()
    (played.run("alice") / "secagg" / "r0001-alice.json").unlink()
    ask = {"cohort": played.cohort.to_json()}
    refused("keys of this round are gone", lambda: played.ask("shares", "alice", ask))
    refused("keys of this round are gone", lambda: played.ask("agree", "alice", {"survivors": {"nodes": ["alice"]}}))


@pytest.mark.parametrize(
    ("names", "owner", "why"),
    [
        (("alice", "bob"), {}, "the cohort has 2 nodes, and the owner asks for 3"),
        (NAMES[:3], {"least": 4}, "the cohort has 3 identities, the owner asks 4"),
        (NAMES, {"least": 5}, "the cohort has 4 identities, the owner asks 5"),
    ],
    ids=["two", "below the owner's least", "all, and the owner wants more"],
)
def test_a_cohort_that_is_too_small_is_refused(tmp_path, names, owner, why):
    played = Round(tmp_path, owners={"alice": owner}).keys()
    cohort = played.gathered(names)
    refused(why, lambda: played.ask("shares", "alice", {"cohort": cohort.to_json()}))


def test_a_cohort_of_one_is_refused(tmp_path):
    played = Round(tmp_path).keys()
    alone = {**played.cohort.to_json(), "adverts": [played.said["keys"]["alice"]], "degree": 0, "threshold": 1}
    refused("a cohort of one would tell its update", lambda: played.ask("shares", "alice", {"cohort": alone}))


def test_one_identity_under_many_names_is_no_cohort(tmp_path):
    """A coordinator that plays the other nodes itself has to bring a key for each."""
    played = Round(tmp_path, owners={"alice": {"least": 4}}).keys()
    one = Identity.ephemeral()
    made = [node.advertise(one, Place(run=IDENTITY, round=1, node=name))[1].to_json() for name in NAMES[1:]]
    cohort = {**played.cohort.to_json(), "adverts": [played.said["keys"]["alice"], *made]}
    refused("two nodes of the cohort have the same identity", lambda: played.ask("shares", "alice", {"cohort": cohort}))


def test_another_cohort_of_the_same_round_is_refused(dealt):
    other = dealt.gathered(NAMES[:3])
    refused("another cohort already", lambda: dealt.ask("shares", "alice", {"cohort": other.to_json()}, attempt=2))


def test_other_survivors_the_second_time_are_refused(dealt):
    """Of two sums whose nodes differ by one, that one's update follows."""
    dealt.train().agree()
    fewer = {"survivors": {"nodes": list(NAMES[:3])}}
    refused("other survivors already", lambda: dealt.ask("agree", "alice", fewer, attempt=2))
    fewer = {"agreement": Agreement(nodes=NAMES[:3], signatures={}).to_json()}
    refused("not the survivors that this node signed", lambda: dealt.ask("unmask", "alice", fewer))


def test_survivors_that_are_too_few_or_strangers_are_refused(dealt):
    dealt.train()
    for nodes in (["alice", "bob"], ["bob", "carol", "dave"], ["alice", "bob", "mallory"]):
        with pytest.raises(ConfigError, match="secure aggregation: "):
            dealt.ask("agree", "alice", {"survivors": Survivors(nodes=tuple(nodes)).to_json()})


def test_nobody_signs_before_it_has_masked(dealt):
    everybody = {"survivors": {"nodes": list(NAMES)}}
    refused("nothing was masked in round 1 yet", lambda: dealt.ask("agree", "alice", everybody))


def test_of_each_peer_a_node_gives_shares_of_one_kind_alone(done):
    """Both together would take the masks off that peer's own row."""
    for name in NAMES[:3]:
        said = Revealed.from_json(done.said["unmask"][name])
        assert set(said.seeds) == set(NAMES[:3])
        assert set(said.keys) == {"dave"}
    gone = tuple(n for n in NAMES if n != "carol")
    for nodes in (gone, NAMES, ("alice", "bob")):
        with pytest.raises(ConfigError, match="not the survivors that this node signed"):
            done.ask("unmask", "alice", {"agreement": Agreement(nodes=nodes, signatures={}).to_json()}, attempt=3)


def test_an_agreement_that_too_few_signed_or_somebody_else_did_is_refused(done):
    said = done.agreement()["agreement"]
    one = {**said, "signatures": {"alice": said["signatures"]["alice"]}}
    refused("1 signed who survived, and 3 must", lambda: done.ask("unmask", "alice", {"agreement": one}, attempt=4))
    swapped = {**said, "signatures": {**said["signatures"], "bob": said["signatures"]["alice"]}}
    refused("signature of bob", lambda: done.ask("unmask", "alice", {"agreement": swapped}, attempt=4))


def test_what_belongs_to_another_round_is_refused(done, tmp_path):
    later = replace(done, base=tmp_path / "base", number=2, said={})
    shutil.copytree(done.base, later.base)
    later.keys()
    replayed = {"cohort": done.cohort.to_json()}
    refused("cohort of another round", lambda: later.ask("shares", "alice", replayed))
    later.shares()
    refused("the share of bob", lambda: later.ask("train", "alice", done.inbox("alice")))
    swapped = later.inbox("alice")
    shares = swapped["inbox"]["shares"]
    shares["bob"], shares["carol"] = shares["carol"], shares["bob"]
    refused("the share of bob", lambda: later.ask("train", "alice", swapped))
    later.train("alice")
    assert later.trained["alice"].update is not None, "what was refused left no trace"


def test_a_round_before_the_newest_is_over(done, tmp_path):
    """Its update under the masks of another cohort would tell who was in one and not in the other."""
    later = replace(done, base=tmp_path / "base", number=2, said={})
    shutil.copytree(done.base, later.base)
    later.keys()
    later.number = 1
    for kind, why in (("keys", "round 1 is over for this node"), ("unmask", "keys of this round are gone")):
        refused(why, lambda kind=kind: later.ask(kind, "alice", done.agreement(), attempt=9))


@pytest.mark.parametrize(
    "otherwise",
    [
        {"privacy": Privacy(secure_aggregation=replace(SECURE, range=1e30)).to_json()},
        {"trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 1}},
        {"model": "masking_code.py:Frozen"},
        {"first_seed": 9},
    ],
    ids=["a range by which all others round to nothing", "a shorter training", "code that learns nothing", "a seed"],
)
def test_no_mask_comes_off_where_one_node_was_told_otherwise(dealt, otherwise):
    """A coordinator that has all others' updates come to nothing would read that one's in the sum."""
    dealt.train("alice")
    alone = dealt.trained["alice"]
    for name in NAMES[1:]:
        dealt.trained[name] = dealt.ask("train", name, dealt.inbox(name), **otherwise)
    assert alone.update is not None
    dealt.agree()
    total = dealt.total()
    assert total[-1] != sum(EXAMPLES.values())
    layout = Layout(spec=Weights.open(dealt.base / "base.safetensors").spec, cohort=4, range=4.0, most=100)
    assert np.abs(np.concatenate(list(layout.decode(total)[0].values()))).max() > 0.5, "it is noise over all the range"


def test_an_inbox_without_a_neighbour_or_with_other_sharers_is_refused(dealt):
    told = dealt.inbox("alice")
    less = {**told, "inbox": {**told["inbox"], "shares": {"bob": told["inbox"]["shares"]["bob"]}}}
    refused("a share of each neighbour", lambda: dealt.ask("train", "alice", less))
    few = {**told, "inbox": {"sharers": ["alice", "bob"], "shares": {"bob": told["inbox"]["shares"]["bob"]}}}
    refused("too few", lambda: dealt.ask("train", "alice", few))


def test_who_was_first_seen_under_a_name_is_known_by_that_from_then_on(done, tmp_path):
    later = replace(done, base=tmp_path / "base", number=2, said={})
    shutil.copytree(done.base, later.base)
    shutil.rmtree(later.base / "bob" / "identity")
    later.keys()
    asked = {"cohort": later.cohort.to_json()}
    refused("the identity of bob, SHA256:.* is not the pinned one", lambda: later.ask("shares", "alice", asked))


@pytest.fixture
def pinned(tmp_path) -> Round:
    """Alice's owner has an identity and has pinned those of bob and carol; dave is a stranger."""
    played = Round(tmp_path / "nodes")
    own = tmp_path / "identity"
    Identity.create(own)
    played.owners["alice"] = {"identity": str(own), "peers": str(tmp_path / "peers"), "least": 3}
    played.keys()
    marks = {name: fingerprint(advert.identity) for name, advert in played.cohort.adverts.items()}
    assert marks["alice"] == Identity.load(own).fingerprint
    assert not (played.base / "alice" / "identity").exists(), "the owner's is the only one"
    (tmp_path / "peers").write_text("".join(f"{name} {marks[name]}\n" for name in NAMES[:3]))
    return played


def test_an_owners_pins_refuse_a_stranger_by_name(pinned):
    refused(
        "the identity of dave, SHA256:.* is not the pinned one",
        lambda: pinned.ask("shares", "alice", {"cohort": pinned.cohort.to_json()}),
    )
    known = pinned.gathered(NAMES[:3])
    pinned.ask("shares", "alice", {"cohort": known.to_json()})


def test_an_identity_that_others_may_read_is_used_for_nothing(pinned):
    Path(pinned.owners["alice"]["identity"]).chmod(0o644)
    pinned.number = 2
    refused("others may read the key", lambda: pinned.ask("keys", "alice", {}))


@pytest.mark.parametrize("kind", ["shares", "agree", "unmask"])
@pytest.mark.parametrize("message", [{}, {"cohort": 3, "survivors": 3, "agreement": 3}, {"cohort": {}, "x": None}])
def test_words_that_are_none_are_refused(done, kind, message):
    refused("", lambda: done.ask(kind, "alice", message, attempt=5))


def test_a_row_is_as_long_as_its_model_and_has_the_count_behind_it(done):
    size = sum(spec.count for spec in Weights.open(done.base / "base.safetensors").spec.values() if spec.is_floating)
    for name in NAMES[:3]:
        row = done.row(name)
        assert (row.dtype, row.shape) == (np.dtype("uint32"), (size + 1,))
    assert done.sum[-1] == 80
    assert torch.equal(Weights.open(done.base / "base.safetensors")["seen"], torch.tensor(0))
