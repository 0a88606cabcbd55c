"""A round whose updates are masked, while its coordinator dies at every event: one sum, of the same nodes, once.

The nodes' part is the real one, in folders that outlive every coordinator; only their trainings are made up. A model is
what it should be within rounding, which is by chance: to the bit no two runs are alike.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl.codecs.pipeline import Pipeline
from fedctl.codecs.wire import Outgoing
from fedctl.errors import ConfigError
from fedctl.events import MessageReceived, RoundAbandoned, StepClosed, UpdateReceived
from fedctl.federation import Codecs, Federation, Named
from fedctl.jobs import SAID
from fedctl.node.trainers import masking
from fedctl.node.trainers.handing import Handing
from fedctl.privacy import Privacy, SecureAggregation
from fedctl.records import Result, Task
from fedctl.secagg import shamir
from fedctl.secagg.messages import Revealed
from fedctl.secure import STEPS
from fedctl.state import RunState
from fedctl.weights import Weights
from tests.scenario.calm import is_finished, went_on
from tests.scenario.test_runs import close_by_hand
from tests.scenario.world import Killed, Killer, Scene, Watch, Work, World, dying, dying_before, federation, of_kind

NAMES = ("alice", "bob", "carol", "dave")
STAYED = NAMES[:3]
MOST_EVENTS = 68
TORN = (0.0, 0.02, 0.5, 0.99)


class MaskedWorld(World):
    """Nodes whose updates lie a way of their own from any model, and leave masked.

    What `liars` deal are shares of no secret of theirs, in the round of `lies_in`; and what `false_holders` reveal then
    are shares of no secret of others.
    """

    liars: frozenset[str] = frozenset()
    false_holders: frozenset[str] = frozenset()
    lies_in: int = 1

    def _worked(self, task: Task, models: Mapping[str, Path]) -> Work:
        key = task.key
        if key.kind not in (*SAID, "train"):
            return super()._worked(task, models)
        folder = self.folder / key.node / "runs" / "toy" / key.folder
        folder.mkdir(parents=True)
        (folder.parent / "id").write_text(f"{self.facts['identity']} machine")
        (folder.parent / "worker.json").write_text(json.dumps({"bundle": self.facts["bundle"]}))
        try:
            lies = key.round == self.lies_in
            if key.kind == "shares" and lies and key.node in self.liars:
                with patch("fedctl.secagg.shamir.split", partial(shares_of_another, split=shamir.split)):
                    return Work(masking.step(task, folder), self.now)
            if key.kind == "unmask" and lies and key.node in self.false_holders:
                result = masking.step(task, folder)
                return Work(replace(result, message=of_no_secret(result.message, key.node)), self.now)
            if key.kind in SAID:
                return Work(masking.step(task, folder), self.now)
            masking.prepare(task, folder)
            if (key.node, key.round, key.attempt) in self.failures:
                return super()._worked(task, models)
            return self._trained(task, models, folder)
        except ConfigError as error:
            return Work(Result(key=key, error=error.message), self.now)

    def _trained(self, task: Task, models: Mapping[str, Path], folder: Path) -> Work:
        base = Weights.open(models["base"])
        moved = {name: base[name] for name in base.spec} | {"w": base["w"] + way(task.key.node, task.key.round)}
        update = Outgoing(pipeline=Pipeline(), tensors=moved, base=base)
        handing = Handing(update=update, expected=base.spec, beside={}, waiting={})
        blob, spent = masking.masked(task, handing, folder, examples(task.key.node), {})
        row = (folder / "update.safetensors").read_bytes()
        return Work(Result(key=task.key, update=blob, tensors=("w",), privacy=spent), self.now, row)


def shares_of_another(secret: bytes, *how, split) -> dict[int, bytes]:
    return split(bytes(byte ^ 0xFF for byte in secret), *how)


def of_no_secret(said, own: str) -> dict:
    """What a node reveals, with false shares of all others."""
    revealed = Revealed.from_json(said)
    false = {name: share if name == own else bytes(33) for name, share in revealed.seeds.items()}
    return replace(revealed, seeds=false).to_json()


def way(node: str, round: int) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(f"{node}/{round}".encode()).digest()[:4], "big")
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))


def examples(node: str) -> int:
    return 10 * len(node)


def secure(*names: str, rounds: int = 1, **more) -> Federation:
    described = federation(*names, rounds=rounds, **{"quorum": 3, "attempts": 1, **more})
    return replace(described, privacy=Privacy(secure_aggregation=SecureAggregation(threshold=0.6, examples=100)))


def scene(folder: Path, described: Federation | None = None, **world) -> Scene:
    """Four nodes, of which dave fails in the first round's training, after its shares are out."""
    made = Scene(folder, described or secure(*NAMES))
    made.world = MaskedWorld(folder=made.world.folder, **world)
    made.world.facts = made.run.facts()
    made.world.fail_at("dave", 1, 1)
    return made


def assert_right_end(made: Scene, state: RunState) -> None:
    """The model of those who stayed; whatever died, each node masked one row a round and signed one list."""
    assert state.status == "finished"
    (report,) = state.history
    assert (report.contributors, report.failed) == (STAYED, ("dave",))
    assert_right_model(made, STAYED)
    assert max(Counter(made.world.done).values()) == 1, "a task was done twice"
    answers = Counter(
        event.task for event in of_kind(made.events, MessageReceived) + of_kind(made.events, UpdateReceived)
    )
    assert max(answers.values()) == 1, "an answer was journalled twice"
    asked = Counter((key.node, key.kind) for key in made.world.keys(*SAID, "train"))
    assert asked == Counter(
        [(name, step) for name in STAYED for step in STEPS] + [("dave", step) for step in STEPS[:3]]
    )
    assert [event.step for event in of_kind(made.events, StepClosed)] == list(STEPS[:-1])
    assert made.leftovers() == []


def assert_right_model(made: Scene, names: Sequence[str], round: int = 1) -> None:
    """That round's, of these nodes' updates by their examples."""
    begun, ended = (Weights.open(made.run.round_model(number)) for number in (round - 1, round))
    wanted = sum(way(name, round) * examples(name) for name in names) / sum(examples(name) for name in names)
    torch.testing.assert_close(ended["w"] - begun["w"], wanted, rtol=0, atol=1e-5)


def test_a_calm_run_has_no_more_events_than_are_killed_at(tmp_path):
    made = scene(tmp_path)
    assert_right_end(made, made.go())
    assert MOST_EVENTS - 6 < len(made.events) < MOST_EVENTS


@pytest.mark.parametrize("nth", range(1, MOST_EVENTS))
def test_dying_once_what_was_done_is_ahead_of_the_journal(nth, tmp_path):
    made = scene(tmp_path)
    made.dies(writer=dying(nth, TORN[nth % len(TORN)]))
    assert len(made.events) <= nth
    assert_right_end(made, went_on(made))


@pytest.mark.parametrize("nth", range(1, MOST_EVENTS, 4))
def test_dying_once_an_event_is_written_and_nothing_has_followed(nth, tmp_path):
    made = scene(tmp_path)
    made.dies(Killer(nth))
    assert_right_end(made, went_on(made))


@given(
    deaths=st.lists(st.tuples(st.sampled_from(["journal", "sink"]), st.integers(1, 40), st.floats(0, 1)), max_size=4),
    jitter=st.integers(0, 2**16),
)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_dying_at_random_with_answers_in_any_order(deaths, jitter):
    with TemporaryDirectory() as folder:
        made = scene(Path(folder) / "run", jitter=jitter)
        for where, nth, torn in deaths:
            if not is_finished(made):
                made.dies(
                    *([Killer(nth)] if where == "sink" else []), writer=dying(nth if where == "journal" else 999, torn)
                )
        assert_right_end(made, went_on(made))


@pytest.mark.parametrize("step", STEPS)
def test_a_node_that_goes_away_for_good_in_any_step_is_done_without(step, tmp_path):
    """While enough stay; in the last steps its update counts, for it is in the sum."""
    described = secure(*NAMES, "erin", patience_s=1.0)
    made = scene(tmp_path, described, look_s=0.01)
    made.world.failures.clear()

    def goes(event) -> None:
        is_time = isinstance(event, StepClosed) and event.step == STEPS[STEPS.index(step) - 1]
        if is_time or (step == "keys" and type(event).__name__ == "RoundOpened"):
            made.world.down.add("erin")

    state = made.go(Watch(goes))
    assert state.status == "finished", state.reason
    (report,) = state.history
    assert report.contributors == ((*NAMES, "erin") if step in ("agree", "unmask") else NAMES)
    assert_right_model(made, report.contributors)


def test_an_update_that_the_disk_lost_comes_again_the_same(tmp_path):
    """The masks of the sum fit that row and no other."""
    made = scene(tmp_path)

    def dies(event) -> None:
        if isinstance(event, StepClosed) and event.step == "agree":
            raise Killed

    assert made.dies(Watch(dies))
    row = made.run.update(1, "bob")
    was = row.read_bytes()
    row.write_bytes(was[:-4] + b"\0\0\0\0")
    assert made.go().status == "finished"
    assert_right_model(made, STAYED)
    assert row.read_bytes() == was
    assert max(Counter(made.world.done).values()) == 1, "nobody trained again"


def test_a_second_round_has_keys_and_masks_of_its_own(tmp_path):
    made = scene(tmp_path, secure(*NAMES, rounds=2))
    state = made.go()
    assert [report.contributors for report in state.history] == [STAYED, NAMES]
    for name in STAYED:
        keys = [made.run.said(number, "keys", name).read_bytes() for number in (1, 2)]
        assert keys[0] != keys[1]
        rows = [Weights.open(made.run.update(number, name))["masked"] for number in (1, 2)]
        assert not torch.equal(rows[0].to(torch.int64), rows[1].to(torch.int64))


def test_a_sum_of_too_few_ends_the_run(tmp_path):
    made = scene(tmp_path, secure("alice", "bob", "dave"))
    state = made.go()
    assert state.status == "failed"
    assert state.reason == "round 1 has 2 of the 3 nodes that its step `train` needs (dave: out of memory)"
    assert not made.run.round_model(1).exists()
    assert not made.world.keys("agree", "unmask"), "nobody was asked to take a mask off"


@pytest.mark.parametrize("when", ["calm", "before", "after"])
def test_a_round_whose_masks_do_not_come_off_is_abandoned_and_the_run_goes_on_without_who_dealt_the_shares(
    when, tmp_path
):
    """Whether its coordinator dies before that is written down, or once it is."""
    made = scene(tmp_path, secure(*NAMES, rounds=2))
    made.world.failures.clear()
    made.world.liars = frozenset({"bob"})

    def dies(event) -> None:
        if isinstance(event, RoundAbandoned):
            raise Killed

    if when == "after":
        assert made.dies(Watch(dies))
    if when == "before":
        assert made.dies(writer=dying_before(RoundAbandoned))
    state = made.go()
    assert state.status == "finished", state.reason
    (abandoned,) = of_kind(made.events, RoundAbandoned)
    assert abandoned.nodes == ("bob",)
    assert abandoned.reason == "too few right shares came to unmask bob, of 3 that are needed"
    others = tuple(name for name in NAMES if name != "bob")
    assert [(report.contributors, report.failed) for report in state.history] == [((), ("bob",)), (others, ())]
    assert made.run.round_model(1).read_bytes() == made.run.round_model(0).read_bytes()
    assert_right_model(made, others, round=2)
    assert max(Counter(made.world.done).values()) == 1, "a task was done twice"
    assert made.leftovers() == []


def test_where_too_few_are_left_the_run_ends_and_a_resume_asks_all_again(tmp_path):
    made = scene(tmp_path, secure("alice", "bob", "carol", rounds=2))
    made.world.liars = frozenset({"bob"})
    state = made.go()
    assert state.status == "failed"
    assert state.reason == (
        "round 2 needs 3 nodes, and 2 can be had (bob: too few right shares came to unmask bob, of 2 that are needed)"
    )
    state = made.go()
    assert state.status == "finished", state.reason
    assert_right_model(made, ("alice", "bob", "carol"), round=2)


def test_where_many_secrets_are_not_told_nobody_is_barred_for_it(tmp_path):
    """It may be a holder who lies: here bob, once no share may lack any more."""
    made = scene(tmp_path, secure(*NAMES, rounds=2))
    made.world.failures.clear()
    made.world.false_holders = frozenset({"bob"})

    def goes(event) -> None:
        if isinstance(event, StepClosed) and (event.round, event.step) == (1, "agree"):
            made.world.down.add("dave")
        if isinstance(event, RoundAbandoned):
            made.world.down.clear()

    described = replace(made.federation, schedule=replace(made.federation.schedule, patience_s=1.0))
    state = made.go(Watch(goes), federation=described)
    assert state.status == "finished", state.reason
    (abandoned,) = of_kind(made.events, RoundAbandoned)
    assert abandoned.nodes == ()
    assert "unmask alice, carol, dave, of 3 that are needed" in abandoned.reason
    assert not any(node.barred for node in state.nodes.values())
    assert_right_model(made, state.history[1].contributors, round=2)


def test_after_an_abandoned_round_the_strategy_remembers_what_it_did_and_rows_are_whole_once(tmp_path):
    """`codec: int8` halves rows by how far the round before moved, and that one did not."""
    described = secure(*NAMES, rounds=4, strategy="fedavgm", codec=Codecs(up=(Named(name="int8"),)))
    made = scene(tmp_path, described)
    made.world.failures.clear()
    made.world.liars, made.world.lies_in = frozenset({"carol"}), 2
    state = made.go()
    assert state.status == "finished", state.reason
    others = tuple(name for name in NAMES if name != "carol")
    assert [report.contributors for report in state.history] == [NAMES, (), others, others]
    assert made.run.memory(2).read_bytes() == made.run.memory(1).read_bytes()
    assert made.run.memory(3).read_bytes() != made.run.memory(2).read_bytes()
    widths = [Weights.open(made.run.update(number, "alice"))["masked"].dtype.itemsize for number in range(1, 5)]
    assert widths == [4, 2, 4, 2]


def test_a_held_round_whose_masks_do_not_come_off_is_given_up_by_hand_and_the_next_is_held(tmp_path):
    """Also by a second hand, where the first one died amid it."""
    made = scene(tmp_path, secure(*NAMES, rounds=2, strategy="fedavgm"))
    made.world.failures.clear()
    made.world.liars = frozenset({"bob"})
    assert made.go(hold=True).status == "held"
    with patch("fedctl.rounds.copy_atomically", side_effect=Killed), pytest.raises(Killed):
        close_by_hand(made, Named(name="fedavgm"))
    assert isinstance(close_by_hand(made, Named(name="fedavgm")), RoundAbandoned)
    assert made.state.status == "running"
    state = made.go(hold=True)
    assert (state.status, state.open.number) == ("held", 2)
    assert close_by_hand(made, Named(name="fedavgm")).contributors == ("alice", "carol", "dave")
