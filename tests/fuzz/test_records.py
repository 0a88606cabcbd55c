import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl import eventlines, events
from fedctl.records import Blob, Progress, Result, Score, Task, TaskKey
from tests.fuzz import JSON, each_of, mutated
from tests.unit.test_events import EXAMPLES
from tests.unit.test_records import RECORDS

KINDS = [Blob, Score, Task, Result, Progress]


@pytest.mark.parametrize("kind", KINDS)
@given(value=JSON)
@settings(max_examples=100, deadline=None)
def test_json_that_is_no_record_is_a_valueerror(kind, value):
    with pytest.raises(ValueError):
        kind.from_json(value)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_damaged_record_is_refused_or_a_record_that_comes_back(record, data):
    value = record.to_json()
    for name in data.draw(st.lists(st.sampled_from(sorted(value)), max_size=3)):
        value[name] = data.draw(JSON)
    with contextlib.suppress(ValueError):
        read = type(record).from_json(value)
        again = type(record).from_json(json.loads(json.dumps(read.to_json())))
        assert repr(again) == repr(read)  # NaN is not equal to itself


@given(st.text(max_size=40) | st.from_regex(r"r[0-9]{4}/[a-z.]{1,5}/[a-z][0-9]{1,2}"))
@settings(max_examples=200, deadline=None)
def test_a_text_is_a_key_to_the_letter_or_refused(text):
    with contextlib.suppress(ValueError):
        assert str(TaskKey.parse(text)) == text


def load(line):
    """An event, which comes back from its line, or a ValueError."""
    with contextlib.suppress(ValueError):
        event = eventlines.load(line.decode())
        assert isinstance(event, events.Event)


@each_of("journal")
def test_the_corpus_of_the_journal_is_read_or_refused(content):
    load(content)


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_line_is_an_event_or_refused(event, data):
    load(mutated(data, eventlines.dump(event).encode()))
