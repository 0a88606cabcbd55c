"""What `audit` makes of a journal and of what nodes' ledgers say, as a table."""

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedctl.audit import audit
from fedctl.errors import NodeError
from fedctl.events import MessageReceived, ModelEvaluated, RunFinished, TaskFailed, UpdateReceived
from fedctl.ledger import Pin, Statement
from fedctl.node.agent import Ledger
from fedctl.records import Blob, Score, TaskKey

AT = datetime(2026, 11, 22, tzinfo=UTC)
CODE = "c" * 64
TRAIN = TaskKey(round=1, node="alice")
SCORE = TaskKey(round=1, node="alice", kind="evaluate")
KEYS = TaskKey(round=1, node="alice", kind="keys")
UPDATE = Blob(digest="ab" * 32, size=100)
WORDS = Blob(digest=hashlib.sha256(b"words").hexdigest(), size=5)

RECEIVED = UpdateReceived(
    at=AT, task=TRAIN, update=UPDATE, examples=7, metrics={"a": 0.5, "b": float("nan")}, seconds=1
)
EVALUATED = ModelEvaluated(
    at=AT, task=SCORE, scores={"global": Score(examples=3, metrics={"a": 1.0, "b": float("inf")})}, seconds=1
)
SAID = MessageReceived(at=AT, task=KEYS, message=WORDS, seconds=1)
FINISHED = RunFinished(at=AT)

OUT = {"kind": "update", "task": str(TRAIN), "offset": 0, "size": 100, "sha256": UPDATE.digest, "code": CODE}
RESULT = {"kind": "result", "task": str(TRAIN), "size": 9, "examples": 7, "metrics": {"a": 0.5, "b": None}}
SCORES = {
    "kind": "result",
    "task": str(SCORE),
    "size": 9,
    "scores": {"global": {"examples": 3, "metrics": {"a": 1.0, "b": None}}},
}
MESSAGE = {"kind": "result", "task": str(KEYS), "size": 9, "message": {"size": 5, "sha256": WORDS.digest}}
ALL = (RESULT, OUT, SCORES, MESSAGE)
JOURNAL = (RECEIVED, EVALUATED, SAID, FINISHED)


@pytest.fixture
def state(tmp_path):
    def state(*entries, is_whole=False):
        ledger = Ledger(tmp_path / "ledger.jsonl")
        last = None
        for entry in entries:
            last = ledger.append(entry)
        return Statement(
            lines=tuple((tmp_path / "ledger.jsonl").read_bytes().splitlines(keepends=True)) if entries else (),
            head=last and Pin.from_json(last),
            trouble=None,
            is_whole=is_whole,
        )

    return state


def one(events, statement):
    (found,) = audit(events, {"alice": statement}, CODE)
    return found


def test_what_agrees_agrees(state):
    found = one(JOURNAL, state(*ALL, {"kind": "progress", "task": str(TRAIN), "size": 30}))
    assert (found.state, found.differences, found.remarks) == ("agrees", (), ())
    assert found.bytes == {"update": 100, "result": 27, "progress": 30, "log": 0}
    assert found.entries == 5
    assert found.epsilon is None


def test_an_update_is_compared_as_it_travelled(state):
    coded = replace(RECEIVED, update=Blob(digest="cd" * 32, size=400), wire=UPDATE)
    assert one((coded, *JOURNAL[1:]), state(*ALL)).state == "agrees"


def test_a_part_that_left_again_counts_and_is_no_difference(state):
    found = one(JOURNAL, state(*ALL, {**OUT, "offset": 60}))
    assert found.state == "agrees"
    assert found.bytes["update"] == 140


def test_epsilon_is_the_newest(state):
    spent = [{**RESULT, "privacy": {"epsilon": epsilon}} for epsilon in (1.0, 1.5)]
    assert one(JOURNAL, state(*spent, *ALL[1:])).epsilon == 1.5


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ((RESULT, SCORES, MESSAGE), "r0001/alice/a1: its update is in the journal and not in the ledger"),
        ((OUT, SCORES, MESSAGE), "r0001/alice/a1: its result is in the journal and not in the ledger"),
        ((RESULT, OUT, MESSAGE), "r0001/alice/e1: its result is in the journal and not in the ledger"),
        ((RESULT, OUT, SCORES), "r0001/alice/k1: its result is in the journal and not in the ledger"),
        (
            ({**RESULT, "examples": 8}, *ALL[1:]),
            "r0001/alice/a1: its result is not the same in the journal and in the ledger",
        ),
        (
            (*ALL[:2], {**SCORES, "scores": {}}, MESSAGE),
            "r0001/alice/e1: its result is not the same in the journal and in the ledger",
        ),
        (
            (*ALL[:3], {**MESSAGE, "message": {"size": 5, "sha256": CODE}}),
            "r0001/alice/k1: its result is not the same in the journal and in the ledger",
        ),
        (
            (RESULT, {**OUT, "sha256": "ef" * 32, "size": 90}, *ALL[2:]),
            "r0001/alice/a1: abababab of 100 bytes arrived, and efefefef of 90 bytes left",
        ),
        (
            (RESULT, {**OUT, "code": "d" * 64}, *ALL[2:]),
            "r0001/alice/a1: it was made by other code than the run's: dddddddd, not cccccccc",
        ),
        ((*ALL, {**OUT, "task": "r0002/alice/a1"}), "r0002/alice/a1: its update left and never arrived"),
        ((), "its ledger has nothing of this run: it was removed, as `clean --nodes` does, or begun anew"),
    ],
)
def test_what_does_not_is_named(state, entries, said):
    found = one(JOURNAL, state(*entries))
    assert found.state == "differs"
    assert found.differences == (said,)


def test_an_update_that_was_refused_has_arrived(state):
    failed = TaskFailed(at=AT, task=TaskKey(round=2, node="alice"), reason="it has NaN", retryable=False)
    assert one((failed, *JOURNAL), state(*ALL, {**OUT, "task": "r0002/alice/a1"})).state == "agrees"


def test_before_the_run_is_over_what_has_not_arrived_may_still(state):
    found = one(JOURNAL[:-1], state(*ALL, {**OUT, "task": "r0002/alice/a1"}))
    assert found.state == "agrees"
    assert found.remarks == ("r0002/alice/a1: what left has not arrived yet",)


def test_a_result_that_nobody_waited_for_is_a_remark(state):
    found = one(JOURNAL, state(*ALL, {**RESULT, "task": "r0002/alice/a1"}))
    assert found.state == "agrees"
    assert found.remarks == ("r0002/alice/a1: its result left, and nobody waited for it any more",)


def test_what_was_pinned_must_be_there(state):
    statement = state(*ALL)
    first = json.loads(statement.lines[0])
    right = Pin(n=1, hash=first["hash"])

    def said(pin, lines=statement.lines):
        return one((replace(RECEIVED, ledger=pin), *JOURNAL[1:]), replace(statement, lines=lines)).differences

    assert said(right) == ()
    assert said(replace(right, hash="e" * 64)) == ("entry 1 of its ledger was rewritten: the journal has it otherwise",)
    assert said(replace(right, n=9)) == ("its ledger was cut off: it ends at 4, and the journal knows of 9",)
    assert said(replace(right, n=3), statement.lines[:2] + statement.lines[3:])[-1] == (
        "entry 3 of its ledger is gone: the journal has it"
    )


def test_one_that_could_not_be_asked_is_no_difference():
    found = one(JOURNAL, NodeError("no route to host"))
    assert (found.state, found.reason, found.differences) == ("unreachable", "no route to host", ())


def test_nodes_of_one_machine_have_their_own_entries_and_share_its_chain(state):
    statement = state(*ALL, {**RESULT, "task": "r0001/bob/a1", "size": 50})
    alice, bob = audit(JOURNAL, {"alice": statement, "bob": statement}, CODE)
    assert (alice.bytes["result"], bob.bytes["result"]) == (27, 50)
    broken = replace(statement, trouble="entry 2 was changed")
    for found in audit(JOURNAL, {"alice": broken, "bob": broken}, CODE):
        assert found.differences == ("the chain of its ledger is broken: entry 2 was changed",)


def digests_but(statement, *own):
    """The statement of a chain whose other entries are those of other runs."""
    lines = [
        line if index in own else hashlib.sha256(line[: line.rindex(b',"prev"')]).hexdigest().encode() + b"\n"
        for index, line in enumerate(statement.lines)
    ]
    return replace(statement, lines=tuple(lines), is_whole=True)


def test_a_whole_chain_is_computed_from_digests(state):
    whole = digests_but(state({"kind": "facts"}, *ALL, {"kind": "facts"}), 1, 2, 3, 4)
    assert one(JOURNAL, whole).state == "agrees"
    assert one(JOURNAL, digests_but(state({"kind": "facts"}), 0)).head.n == 7


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [b"e" * 64 + b"\n", *lines[1:]], "entry 2 does not lead on from entry 1"),
        (lambda lines: lines[1:], "entry 1 is missing"),
        (lambda lines: lines[:-1], "its last entries are not those that it ends with: 5 are there"),
        (
            lambda lines: [*lines[:-1], b"e" * 64 + b"\n"],
            "its last entries are not those that it ends with: 6 are there",
        ),
        (lambda lines: [*lines[:2], lines[3], *lines[3:]], "entry 3 is missing"),
        (lambda lines: [*lines[:2], b"\n", *lines[2:]], "the line after entry 2 is no entry"),
        (lambda lines: [lines[0], lines[1].replace(b'"size":9', b'"size":8'), *lines[2:]], "entry 2 was changed"),
        (lambda lines: [lines[0], lines[1].replace(b'"kind"', b'"n":5,"kind"'), *lines[2:]], "the line after entry 1"),
        (lambda lines: [*lines, b'[],"prev":"%s","hash":"%s"}\n' % (b"0" * 64, b"0" * 64)], "the line after entry 6"),
    ],
)
def test_a_whole_chain_that_is_not_what_it_was_is_named(state, change, said):
    whole = digests_but(state({"kind": "facts"}, *ALL, {"kind": "facts"}), 1, 2, 3, 4)
    found = one(JOURNAL, replace(whole, lines=tuple(change(list(whole.lines)))))
    assert found.state == "differs"
    assert found.differences[0].startswith(f"the chain of its ledger is broken: {said}")


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**400, "\x1b[2J"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
NAMES = ("kind", "size", "offset", "sha256", "code", "examples", "metrics", "scores", "privacy", "message")


@given(
    entries=st.lists(
        st.fixed_dictionaries(
            {"task": st.sampled_from([str(TRAIN), str(SCORE), str(KEYS)])},
            optional=dict.fromkeys(NAMES, ANYTHING),
        )
        | st.fixed_dictionaries({"kind": st.just("update"), "task": st.just(str(TRAIN))}, optional={"size": ANYTHING}),
        max_size=3,
    ),
    garbage=st.lists(st.binary(max_size=300), max_size=3),
    is_whole=st.booleans(),
)
def test_a_ledger_may_say_anything(entries, garbage, is_whole):
    tail = b',"prev":"' + b"0" * 64 + b'","hash":"' + b"1" * 64 + b'"}\n'
    lines = [b'{"n":%d,' % number + json.dumps(one).encode()[1:-1] + tail for number, one in enumerate(entries)]
    statement = Statement(
        lines=(*lines, *garbage, *(piece + tail for piece in garbage)), head=None, trouble=None, is_whole=is_whole
    )
    found = one(JOURNAL, statement)
    assert found.state == "differs"
    json.dumps([found.bytes, found.epsilon, found.differences, found.remarks], allow_nan=False)
