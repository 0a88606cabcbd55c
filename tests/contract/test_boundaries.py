"""A line that breaks at every boundary of the frames of a transfer, either way: nothing is lost, and little sent again.

What a transfer says is recorded once, over a line that holds; its frames tell where to break the next ones.
"""

import hashlib
import os
import struct
import sys

import pytest

from fedctl import transfer
from fedctl.connection import Connection
from fedctl.errors import ConnectionLost
from fedctl.node.agent import BLOCK
from fedctl.records import Blob
from tests.contract.breaking import Breaking, Line

CONTENT = os.urandom(3 * BLOCK + 77)
BLOB = Blob(digest=hashlib.sha256(CONTENT).hexdigest(), size=len(CONTENT))
RUN = {"run": "one", "identity": "aaaa"}
KEY = "r0001/alice/a1"
FRAMES = 5
"""Of an upload: `stat` and four pieces. Of a download: four pieces."""
HEADERS = 2**14
"""Bytes; more than all headers of such a transfer."""
PARTS = ("its lengths", "its header", "its body")


class Recording(Breaking):
    """Keeps what passes, by way."""

    def __init__(self, home):
        super().__init__(home)
        self.said = {"up": b"", "down": b""}

    def open(self, argv):
        self.opened.append(RecordedLine(self, self.inner.open(argv)))
        return self.opened[-1]


class RecordedLine(Line):
    def write(self, data):
        self.transport.said["up"] += data
        super().write(data)

    def read(self, size):
        data = super().read(size)
        self.transport.said["down"] += data
        return data


def boundaries(said: bytes) -> list[int]:
    """Where each frame's lengths, header and body end."""
    found, at = [], 0
    while at < len(said):
        header, body = struct.unpack_from(">II", said, at)
        found += [at + 8, at + 8 + header, at + 8 + header + body]
        at = found[-1]
    assert at == len(said)
    return found


def connected(transport) -> Connection:
    return Connection.open(transport, sys.executable, answer_s=60)


def send(connection, source) -> None:
    transfer.put(connection, BLOB, source)


def bring(connection, target) -> None:
    transfer.fetch(
        lambda offset, limit: connection.begin(
            "read", **RUN, key=KEY, name="update.safetensors", offset=offset, limit=limit
        ),
        BLOB,
        target,
    )


def node(tmp_path, kind=Breaking):
    """A node that has the blob as a task's update, and the file to send to it."""
    transport = kind(tmp_path / "home")
    connected(transport).ask("list", **RUN)
    folder = tmp_path / "home/runs/one" / KEY.replace("/", "-")
    folder.mkdir()
    (folder / "update.safetensors").write_bytes(CONTENT)
    (tmp_path / "source").write_bytes(CONTENT)
    return transport


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The boundaries of the frames of a transfer, by way, counted from its first byte."""
    found = {}
    for way, move, file in (("up", send, "source"), ("down", bring, "target")):
        tmp_path = tmp_path_factory.mktemp(way)
        transport = node(tmp_path, Recording)
        connection = connected(transport)
        before = len(transport.said[way])
        move(connection, tmp_path / file)
        found[way] = boundaries(transport.said[way][before:])
        for line in transport.opened:
            line.kill()
    return found


def break_at(transport, way: str, size: int, move, file) -> int:
    """Break a transfer after so many bytes, have it go on over a new line; returns the bytes that both took."""
    connection, before = connected(transport), transport.carried[way]
    transport.break_after(**{way: size})
    try:
        move(connection, file)
    except ConnectionLost:
        transport.opened[-1].wait()
    else:
        return transport.carried[way] - before
    took = transport.carried[way] - before
    transport.break_after(**{way: 10**12})
    connection, before = connected(transport), transport.carried[way]
    move(connection, file)
    return took + transport.carried[way] - before


@pytest.mark.parametrize("part", range(3), ids=PARTS)
@pytest.mark.parametrize("frame", range(FRAMES))
def test_an_upload_that_breaks_at_a_boundary_goes_on(tmp_path, recorded, frame, part):
    cut = recorded["up"][3 * frame + part]
    took = break_at(node(tmp_path), "up", cut, send, tmp_path / "source")
    assert {path.name for path in (tmp_path / "home/blobs").iterdir()} == {BLOB.digest}
    assert (tmp_path / "home/blobs" / BLOB.digest).read_bytes() == CONTENT
    assert took <= BLOB.size + HEADERS, "what had come was sent again"


@pytest.mark.parametrize("part", range(3), ids=PARTS)
@pytest.mark.parametrize("frame", range(FRAMES - 1))
def test_a_download_that_breaks_at_a_boundary_goes_on(tmp_path, recorded, frame, part):
    cut = recorded["down"][3 * frame + part]
    target = tmp_path / "updates/alice.safetensors"
    took = break_at(node(tmp_path), "down", cut, bring, target)
    assert [path.name for path in target.parent.iterdir()] == ["alice.safetensors"]
    assert target.read_bytes() == CONTENT
    assert took <= BLOB.size + HEADERS, "what had come was sent again"


def test_every_boundary_is_met(recorded):
    assert {way: len(found) for way, found in recorded.items()} == {"up": 3 * FRAMES, "down": 3 * (FRAMES - 1)}
