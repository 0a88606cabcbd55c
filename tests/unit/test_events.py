import contextlib
import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedctl import eventlines, events
from fedctl.ledger import Pin
from fedctl.records import Blob, Score, TaskKey
from fedctl.traffic import Traffic

AT = datetime(2026, 11, 21, 23, 50, 7, 123000, tzinfo=UTC)
KEY = TaskKey(round=3, node="bob", attempt=2)
BLOB = Blob(digest="cd" * 32, size=9)
TRAFFIC = Traffic(sent=1, received=2)
EXAMPLES = [
    events.RunStarted(
        at=AT,
        run="r",
        federation="f",
        seed=7,
        rounds=2,
        nodes=("a", "b"),
        compare=True,
        metric="val_acc",
        mode="max",
        absent_s=3.5,
        patience_s=300.0,
    ),
    events.NodeReady(at=AT, node="a", facts={"cpus": 2, "system": "Linux"}),
    events.NodeLost(at=AT, node="a", reason="ünreachable", passing=False),
    events.NodeDeclined(at=AT, node="a", reason="on battery", seconds=60.0),
    events.ModelInitialized(at=AT, model=BLOB, forecast=Traffic(sent=5, received=6, raw_sent=7, raw_received=8)),
    events.RoundOpened(at=AT, round=1, nodes=("a",), wanted=1, quorum=1),
    events.RoundWidened(at=AT, round=1, nodes=("b",)),
    events.TaskStarted(at=AT, task=KEY),
    events.TaskFailed(at=AT, task=KEY, reason="CUDA out of memory", retryable=True, detail="Traceback\n"),
    events.UpdateReceived(
        at=AT,
        task=KEY,
        update=BLOB,
        examples=3,
        metrics={"loss": 0.25},
        seconds=1.5,
        bytes=TRAFFIC,
        accelerator="cuda:1",
        steps=40,
        partial=True,
        line_s=0.5,
        wire=BLOB,
        ledger=Pin(n=5, hash="ab" * 32),
    ),
    events.UpdateLost(at=AT, task=KEY, reason="its file is gone"),
    events.ModelEvaluated(
        at=AT, task=KEY, scores={"global": Score(examples=2, metrics={"acc": 0.5})}, seconds=0.1, bytes=TRAFFIC
    ),
    events.MessageReceived(at=AT, task=TaskKey.parse("r0001/a/k1"), message=BLOB, seconds=0.1, bytes=TRAFFIC),
    events.StepClosed(at=AT, round=1, step="keys", nodes=("a", "b")),
    events.RoundHeld(at=AT, round=1),
    events.RoundAggregated(at=AT, round=1, model=BLOB, contributors=("a", "b")),
    events.RoundAbandoned(at=AT, round=1, nodes=("a",), reason="why", epsilon=1.5, epsilon_next=2.25),
    events.RunFinished(at=AT),
    events.RunFailed(at=AT, reason="why"),
]


def test_every_kind_has_an_example_here():
    assert {type(example).__name__ for example in EXAMPLES} == set(eventlines.EVENTS)


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_from_its_line(event):
    line = eventlines.dump(event)
    assert "\n" not in line
    assert list(json.loads(line))[:2] == ["at", "event"]
    assert eventlines.load(line) == event


def test_a_line_is_as_the_documentation_shows_it():
    assert eventlines.dump(events.TaskFailed(at=AT, task=KEY, reason="CUDA out of memory", retryable=True)) == (
        '{"at":"2026-11-21T23:50:07.123Z","event":"TaskFailed","task":"r0003/bob/a2",'
        '"reason":"CUDA out of memory","retryable":true,"detail":""}'
    )


def test_an_update_of_a_journal_that_knew_no_accelerators_is_read():
    event = next(event for event in EXAMPLES if isinstance(event, events.UpdateReceived))
    line = json.loads(eventlines.dump(event))
    del line["accelerator"]
    assert eventlines.load(json.dumps(line)) == replace(event, accelerator="")


@pytest.mark.parametrize("kind", [events.UpdateReceived, events.ModelEvaluated])
def test_an_answer_of_a_journal_that_knew_no_ledgers_is_read(kind):
    event = next(event for event in EXAMPLES if isinstance(event, kind))
    line = json.loads(eventlines.dump(event))
    del line["ledger"]
    line.pop("wire", None)
    bare = {"ledger": None, **({"wire": None} if kind is events.UpdateReceived else {})}
    assert eventlines.load(json.dumps(line)) == replace(event, **bare)


def test_times_are_written_in_utc():
    east = datetime(2026, 11, 22, 1, 50, tzinfo=timezone(timedelta(hours=2)))
    assert json.loads(eventlines.dump(events.RunFinished(at=east)))["at"] == "2026-11-21T23:50:00.000Z"


def test_a_diverged_metric_is_null_in_the_line():
    event = events.UpdateReceived(
        at=AT, task=KEY, update=BLOB, examples=1, metrics={"loss": math.nan, "big": math.inf}, seconds=1.0
    )
    line = eventlines.dump(event)
    assert json.loads(line)["metrics"] == {"loss": None, "big": None}
    assert math.isnan(eventlines.load(line).metrics["loss"])


@pytest.mark.parametrize(
    "line",
    [
        "",
        "x",
        "5",
        "[]",
        "{}",
        '{"event":"RunFinished"}',
        '{"at":"2026-11-21T23:50:07Z"}',
        '{"at":"2026-11-21T23:50:07Z","event":"RunPaused"}',
        '{"at":"2026-11-21T23:50:07Z","event":["RunFinished"]}',
        '{"at":"2026-11-21T23:50:07Z","event":{}}',
        '{"at":"2026-11-21T23:50:07Z","event":"RunFinished","why":1}',
        '{"at":"yesterday","event":"RunFinished"}',
        '{"at":5,"event":"RunFinished"}',
        '{"at":"2026-11-21T23:50:07Z","event":"TaskStarted","task":"r3/bob/a1"}',
        '{"at":"2026-11-21T23:50:07Z","event":"TaskStarted","task":7}',
        '{"at":"2026-11-21T23:50:07Z","event":"RunFailed"}',
        "[" * 100_000,
    ],
)
def test_what_is_no_event_is_a_valueerror(line):
    with pytest.raises(ValueError):
        eventlines.load(line)


@given(st.binary(max_size=60))
def test_garbage_is_a_valueerror(garbage):
    with pytest.raises(ValueError):
        eventlines.load(garbage.decode("latin-1"))


@given(data=st.data())
def test_an_event_with_one_field_of_another_type_is_read_or_a_valueerror(data):
    value = json.loads(eventlines.dump(data.draw(st.sampled_from(EXAMPLES))))
    value[data.draw(st.sampled_from(sorted(value)))] = data.draw(
        st.none() | st.integers() | st.text() | st.lists(st.integers()) | st.dictionaries(st.text(), st.integers())
    )
    with contextlib.suppress(ValueError):
        eventlines.load(json.dumps(value))
