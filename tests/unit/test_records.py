import contextlib
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl.records import Blob, Progress, Result, Score, Task, TaskKey
from fedctl.strictjson import printable

BLOB = Blob(digest="ab" * 32, size=7)
KEY = TaskKey(round=3, node="alice", kind="train", attempt=1)
TASK = Task(
    key=KEY,
    seed=11,
    model="model.py:Net",
    model_args={"lr": 0.1},
    data="data.py:Data",
    data_args={"site": None},
    trainer={"max_epochs": 2},
    models={"base": BLOB},
    threads=2,
    seconds=540.0,
    partial=True,
    when={"hours": [[1200, 360]], "days": [0], "command": ["/opt/idle"]},
    callbacks=({"class": "ema.py:EMA", "args": {"decay": 0.99}},),
    local={"name": "fedprox", "mu": 0.1},
)
RESULT = Result(
    key=KEY,
    examples=40,
    metrics={"loss": 0.5},
    scores={"global": Score(examples=10, metrics={"acc": 1.0})},
    update=BLOB,
    steps=12,
    partial=True,
    seconds=1.5,
    accelerator="cpu",
    error="RuntimeError: out of memory",
    detail="Traceback\n\tx",
    retryable=True,
    ask_again_s=60.0,
)
PROGRESS = Progress(key=KEY, phase="training", epoch=1, epochs=2, step=3, steps=4, metrics={"loss": 0.5})
BARE = Task(key=KEY, seed=1, model="", model_args={}, data="", data_args={}, trainer={})
RECORDS = [BLOB, TASK, RESULT, RESULT.scores["global"], PROGRESS, BARE, Result(key=KEY)]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_from_json(record):
    assert type(record).from_json(json.loads(json.dumps(record.to_json()))) == record


@pytest.mark.parametrize(
    "text", ["r0003/alice/a1", "r0000/coordinator/i1", "r12345/a.b-c_d/e12", "r0010/a-s1/s2", "r0001/x/c9999"]
)
def test_a_key_is_read_back_to_the_letter(text):
    assert str(TaskKey.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "r003/alice/a1",
        "r00003/alice/a1",
        "r0003/alice/a01",
        "r0003/alice/z1",
        "r0003//a1",
        "r0003/../a1",
        "r0003/a..b/a1",
        "r0003/-a/a1",
        "r0003/a/b/a1",
        "r0003/alice/a1\n",
        "r\u0660\u0660\u0660\u0663/alice/a1",
        "r" + "9" * 5000 + "/alice/a1",
        f"r0003/{'a' * 65}/a1",
    ],
)
def test_what_is_no_key_is_refused(text):
    with pytest.raises(ValueError, match="not a task key"):
        TaskKey.parse(text)


def changed(record, **fields):
    return {**record.to_json(), **fields}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Blob, None),
        (Blob, []),
        (Blob, changed(BLOB, digest="AB" * 32)),
        (Blob, changed(BLOB, digest="ab" * 31)),
        (Blob, changed(BLOB, digest=5)),
        (Blob, changed(BLOB, size=-1)),
        (Blob, changed(BLOB, size=True)),
        (Blob, changed(BLOB, size=1.0)),
        (Blob, changed(BLOB, size=2**53)),
        (Blob, changed(BLOB, more=1)),
        (Blob, {"digest": BLOB.digest}),
        (Score, {"examples": 1, "metrics": {"acc": "1"}}),
        (Score, {"examples": 1, "metrics": {"acc": True}}),
        (Score, {"examples": 1, "metrics": {"acc": math.inf}}),
        (Score, {"examples": 1, "metrics": {"acc": 10**400}}),
        (Score, {"examples": 1, "metrics": {"a" * 201: 1}}),
        (Score, {"examples": 1, "metrics": {str(n): 1 for n in range(1001)}}),
        (Result, changed(RESULT, key="r0003/../a1")),
        (Result, changed(RESULT, key=3)),
        (Result, changed(RESULT, retryable=1)),
        (Result, changed(RESULT, error=["x"])),
        (Result, changed(RESULT, error="x" * 2001)),
        (Result, changed(RESULT, detail="x" * 20001)),
        (Result, changed(RESULT, detail=None)),
        (Result, changed(RESULT, seconds=math.nan)),
        (Result, changed(RESULT, steps=-1)),
        (Result, changed(RESULT, partial=None)),
        (Result, changed(RESULT, ask_again_s=math.inf)),
        (Result, changed(RESULT, scores=[])),
        (Result, changed(RESULT, update={"digest": "x", "size": 1})),
        (Progress, changed(PROGRESS, phase="sleeping")),
        (Progress, changed(PROGRESS, phase=["training"])),
        (Progress, changed(PROGRESS, step=None)),
        (Task, changed(TASK, models=[])),
        (Task, changed(TASK, models={"base": None})),
        (Task, changed(TASK, key=None)),
        (Task, changed(TASK, seed="7")),
        (Task, changed(TASK, trainer=None)),
        (Task, changed(TASK, seconds="540")),
        (Task, changed(TASK, partial=1)),
        (Task, changed(TASK, when=None)),
        (Task, changed(TASK, local="fedprox")),
        (Task, changed(TASK, callbacks={})),
        (Task, changed(TASK, callbacks=["ema.py:EMA"])),
        (Task, changed(TASK, callbacks=[{"class": "ema.py:EMA"}])),
        (Task, changed(TASK, callbacks=[{"class": "ema.py:EMA", "args": None}])),
    ],
)
def test_another_type_or_bound_is_refused(kind, value):
    with pytest.raises(ValueError):
        kind.from_json(value)


@pytest.mark.parametrize("kind", [Blob, Score, Task, Result, Progress])
@given(value=JSON)
@settings(max_examples=40)
def test_arbitrary_json_raises_nothing_but_valueerror(kind, value):
    with pytest.raises(ValueError):
        kind.from_json(value)


@pytest.mark.parametrize("record", RECORDS[:5], ids=lambda record: type(record).__name__)
@given(data=st.data())
@settings(max_examples=40)
def test_a_record_with_one_arbitrary_field_is_read_or_a_valueerror(record, data):
    name = data.draw(st.sampled_from(sorted(record.to_json())))
    with contextlib.suppress(ValueError):
        type(record).from_json(changed(record, **{name: data.draw(JSON)}))


def test_a_diverged_metric_is_null_on_the_wire_and_nan_behind_it():
    wire = Score(examples=1, metrics={"loss": math.inf}).to_json()
    assert wire["metrics"] == {"loss": None}
    assert math.isnan(Score.from_json(wire).metrics["loss"])


def test_a_nodes_words_can_neither_steer_a_terminal_nor_break_the_journal():
    told = Result.from_json(changed(RESULT, error="\x1b[2Jgone\udc80\r", detail="a\n\tb\x9b"))
    assert told.error == "\ufffd[2Jgone\ufffd\ufffd"
    assert told.detail == "a\n\tb\ufffd"
    assert told.error.encode()


@given(st.text(st.characters()))
def test_printable_is_encodable_and_stable(text):
    shown = printable(text)
    shown.encode()
    assert printable(shown) == shown
    assert len(shown) == len(text)
