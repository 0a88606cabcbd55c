import contextlib
import io

from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl.connection import Connection
from fedctl.errors import NodeError
from fedctl.node.agent import GREETING, encode_frame, read_frame
from tests.fuzz import JSON, each_of, mutated

HEADERS = st.dictionaries(st.sampled_from(["re", "push", "key", "error", "progress"]) | st.text(max_size=5), JSON)


class Said:
    """A process that has said all it ever will."""

    def __init__(self, said):
        self._stdout = io.BytesIO(said)
        self.read = self._stdout.read

    def write(self, data): ...

    def close_stdin(self): ...

    def kill(self): ...

    def wait(self):
        return 0

    def errors(self):
        return ""


def frames_of(content):
    """All frames, until the end or what is none; what is read is bounded by what is there."""
    stream = io.BytesIO(content)
    with contextlib.suppress(ValueError):
        while frame := read_frame(stream.read):
            header, body = frame
            assert isinstance(header, dict)
            assert len(body) <= len(content)


def hear(content):
    """The coordinator's end hears it, and whoever asked gets an answer or an error of a node."""
    connection = Connection(Said(GREETING + content), answer_s=10)
    connection.listen("k", lambda _: None)
    with contextlib.suppress(NodeError):
        assert isinstance(connection.ask("hello"), dict)
    connection.close()
    assert isinstance(connection.failure, NodeError)


@each_of("frames")
def test_the_corpus_is_frames_or_refused(content):
    frames_of(content)
    hear(content)


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_damaged_frames_are_frames_or_refused(data):
    content = b"".join(encode_frame(data.draw(HEADERS), data.draw(st.binary(max_size=20))) for _ in range(2))
    frames_of(mutated(data, content))


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_whatever_an_agent_says_who_asked_is_answered_or_told(data):
    content = b"".join(encode_frame(data.draw(HEADERS), data.draw(st.binary(max_size=20))) for _ in range(3))
    hear(content if data.draw(st.booleans()) else mutated(data, content))
