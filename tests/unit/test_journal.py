import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedctl import eventlines, events, journal
from fedctl.errors import StateError
from fedctl.journal import Journal

ROOT = Path(__file__).parents[2]
AT = datetime(2026, 11, 21, 23, 50, 7, tzinfo=UTC)
EVENTS = [
    events.NodeReady(at=AT, node="alice"),
    events.RoundOpened(at=AT, round=1, nodes=("alice", "bøb")),
    events.NodeLost(at=AT, node="bøb", reason="no route"),
]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "events.jsonl"
    path.touch()
    return path


def write(path, batch):
    with Journal(path) as writer:
        writer.append(batch)


def test_what_is_appended_is_read(path):
    write(path, EVENTS[:2])
    write(path, EVENTS[2:])
    assert journal.read(path) == EVENTS
    with Journal(path) as writer:
        assert writer.events == EVENTS
        assert not writer.was_torn


def test_a_missing_journal_is_named(tmp_path):
    with pytest.raises(StateError, match=r"cannot read .*nothing\.jsonl"):
        journal.read(tmp_path / "nothing.jsonl")


def test_a_tail_that_is_torn_at_any_byte_is_left_out_and_repaired(path):
    write(path, EVENTS)
    whole = path.read_bytes()
    begin = whole[:-1].rfind(b"\n") + 1
    for size in range(begin, len(whole)):
        path.write_bytes(whole[:size])
        assert journal.read(path) == EVENTS[:2]
        assert path.stat().st_size == size, "reading changes nothing"
        with Journal(path) as writer:
            assert writer.events == EVENTS[:2]
            assert writer.was_torn == (size > begin)
            writer.append(EVENTS[2:])
        assert path.read_bytes() == whole


def assert_left_out_and_repaired(path, garbage):
    write(path, EVENTS[:2])
    good = path.read_bytes()
    path.write_bytes(good + garbage)
    assert journal.read(path) == EVENTS[:2]
    with Journal(path) as writer:
        assert writer.was_torn
    assert path.read_bytes() == good


@pytest.mark.parametrize("garbage", [b"\0" * 5000, b"\xff\r\xfe\r\x80", b'{"at":"2026-11-21T23:50:07Z"', b"\r\r"])
def test_a_tail_of_garbage_without_an_end_is_left_out_and_repaired(path, garbage):
    assert_left_out_and_repaired(path, garbage)


@pytest.mark.parametrize("garbage", [b"\0\0\0\n", b"{}\n", b'{"event":[]}\n', b"\xff\n", b"\n", b"[" * 10**5 + b"\n"])
def test_a_last_line_that_is_whole_but_garbage_is_repaired(path, garbage):
    assert_left_out_and_repaired(path, garbage)


def test_a_damaged_middle_is_refused_with_its_line(path):
    write(path, EVENTS)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1][:-9] + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(StateError, match=r"events\.jsonl:2: the journal is damaged") as caught:
        journal.read(path)
    assert f"`sed -i.damaged '2,$d' {path}`" in caught.value.hint
    before = path.read_bytes()
    with pytest.raises(StateError, match=":2: "):
        Journal(path)
    assert path.read_bytes() == before, "nothing is repaired that may still hold facts"


def test_a_whole_line_that_is_garbage_is_a_damaged_middle_even_where_only_a_torn_one_follows(path):
    write(path, EVENTS[:2])
    path.write_bytes(path.read_bytes() + b"garbage\n{")
    with pytest.raises(StateError, match=":3: the journal is damaged"):
        Journal(path)


def test_a_writer_that_may_not_write_any_more_writes_nothing(path):
    def check():
        raise StateError("taken over")

    with Journal(path, check) as writer, pytest.raises(StateError, match="taken over"):
        writer.append(EVENTS)
    assert path.read_bytes() == b""


def test_following_gives_what_was_and_what_comes(path):
    write(path, EVENTS[:1])
    following = journal.follow(path)
    assert next(following) == EVENTS[:1]
    assert next(following) == []
    write(path, EVENTS[1:])
    assert next(following) == EVENTS[1:]


def test_following_waits_for_a_line_to_be_whole_whatever_byte_it_stops_at(path):
    write(path, EVENTS)
    whole = path.read_bytes()
    path.write_bytes(b"")
    following = journal.follow(path)
    seen = []
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        seen += next(following)
    assert seen == EVENTS


def test_following_goes_on_after_a_garbage_tail_was_repaired(path):
    write(path, EVENTS[:1])
    following = journal.follow(path)
    next(following)
    with path.open("ab") as file:
        file.write(b"garbage\n")
    assert next(following) == []
    write(path, EVENTS[1:])
    assert next(following) == EVENTS[1:]


def test_following_names_the_line_that_is_damaged(path):
    write(path, EVENTS[:2])
    following = journal.follow(path)
    next(following)
    good = eventlines.dump(EVENTS[2]).encode() + b"\n"
    with path.open("ab") as file:
        file.write(good + b"garbage\n" + good)
    with pytest.raises(StateError, match=":4: the journal is damaged"):
        next(following)


def test_a_reader_never_sees_half_an_event_of_a_writer_in_another_process(path):
    code = (
        "import sys; from pathlib import Path; from tests.unit.test_journal import EVENTS, Journal\n"
        "with Journal(Path(sys.argv[1])) as writer:\n"
        "    for _ in range(60): writer.append(EVENTS)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT) as writer:
        following, seen = journal.follow(path), []
        while writer.poll() is None:
            seen += next(following)
        seen += next(following)
    assert writer.returncode == 0
    assert seen == journal.read(path) == EVENTS * 60


def test_a_second_writer_goes_on_where_a_killed_one_stopped(path):
    code = (
        "import os, sys; from pathlib import Path; from tests.unit.test_journal import EVENTS, Journal\n"
        "writer = Journal(Path(sys.argv[1])); writer.append(EVENTS[:2])\n"
        "writer._file.write(b'{\"at\":'); writer._file.flush(); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, timeout=60)
    assert done.returncode == -9
    with Journal(path) as writer:
        assert writer.was_torn
        writer.append(EVENTS[2:])
    assert journal.read(path) == EVENTS
