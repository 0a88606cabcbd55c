import json
from datetime import UTC, datetime

import pytest

from fedctl.records import Progress, TaskKey
from fedctl.telemetry import LONGEST_TEXT, Preparing, dump, load

AT = datetime(2026, 11, 22, 2, 30, tzinfo=UTC)
KEY = TaskKey(round=3, node="bob")


@pytest.mark.parametrize(
    "sample",
    [
        Progress(key=KEY, phase="training", epoch=1, epochs=2, step=3, steps=4, metrics={"loss": 0.5}),
        Progress(key=KEY, phase="unreachable"),
        Preparing(node="bob", text="Collecting torch"),
    ],
)
def test_a_sample_comes_back_from_its_line(sample):
    line = dump(sample, AT)
    assert json.loads(line)["at"] == "2026-11-22T02:30:00.000Z"
    assert load(line.encode()) == sample


def test_a_long_text_is_cut():
    assert len(load(dump(Preparing(node="bob", text="x" * 9999), AT).encode()).text) == LONGEST_TEXT


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"3", b"{}", b'{"at": "x"}', b'{"at": "x", "node": 3, "preparing": ""}']
)
def test_anything_else_is_a_valueerror(line):
    with pytest.raises(ValueError):
        load(line)
