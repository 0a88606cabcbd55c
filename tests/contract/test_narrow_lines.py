"""Lines with a limit, to a real agent and back: never more than it allows, and what is small gets through meanwhile."""

import hashlib
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedctl import transfer
from fedctl.connection import Connection
from fedctl.errors import ConnectionLost
from fedctl.federation import Federation, Node, TaskSpec
from fedctl.host import Work
from fedctl.hosts import Hosts
from fedctl.incoming import PIECE
from fedctl.pace import Bandwidth
from fedctl.records import Blob
from fedctl.transports.local import LocalTransport
from tests.contract.test_connection import HELLO

CONTENT = os.urandom(10**6)
BLOB = Blob(digest=hashlib.sha256(CONTENT).hexdigest(), size=len(CONTENT))
RUN = {"run": "one", "identity": "aaaa"}
BPS = 8e6


@pytest.fixture
def transport(tmp_path):
    return LocalTransport(home=str(tmp_path / "home"))


@pytest.fixture
def connection(transport):
    connection = Connection.open(transport, sys.executable, bandwidth=Bandwidth(BPS))
    yield connection
    connection.close()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def update(tmp_path, connection):
    connection.ask("list", **RUN)
    path = tmp_path / "home/runs/one/r0001-alice-a1/update.safetensors"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


def fetch(connection, target):
    def begin(offset, limit):
        name = {"key": "r0001/alice/a1", "name": "update.safetensors"}
        return connection.begin("read", awaited=limit, **RUN, **name, offset=offset, limit=limit)

    transfer.fetch(begin, BLOB, target, block=connection.block)


def seconds(work):
    began = time.monotonic()
    work()
    return time.monotonic() - began


def test_a_model_goes_no_faster_than_the_limit(connection, source, tmp_path):
    took_s = seconds(lambda: transfer.put(connection, BLOB, source))
    assert 8 * BLOB.size / took_s <= BPS
    assert (tmp_path / "home/blobs" / BLOB.digest).read_bytes() == CONTENT


def test_an_update_comes_no_faster_than_the_limit(connection, update, tmp_path):
    took_s = seconds(lambda: fetch(connection, tmp_path / "alice"))
    assert 8 * BLOB.size / took_s <= BPS
    assert (tmp_path / "alice").read_bytes() == CONTENT


def test_what_is_small_gets_through_meanwhile(connection, source, update, tmp_path):
    """Each way is busy for a second, and requests and their answers do not wait for that."""
    with ThreadPoolExecutor(2) as pool:
        busy = [
            pool.submit(transfer.put, connection, BLOB, source),
            pool.submit(fetch, connection, tmp_path / "alice"),
        ]
        answers = 0
        while not any(one.done() for one in busy):
            connection.ask("stat", digests=[])
            answers += 1
        for one in busy:
            one.result()
    assert answers > 3


def test_all_lines_to_one_machine_share_its_limit(transport, tmp_path):
    bandwidth = Bandwidth(BPS)
    lines = [Connection.open(transport, sys.executable, bandwidth=bandwidth) for _ in range(2)]
    lines.append(lines[0].twin())
    pieces = [CONTENT[:300_000], CONTENT[300_000:600_000], CONTENT[600_000:]]
    blobs = [Blob(digest=hashlib.sha256(piece).hexdigest(), size=len(piece)) for piece in pieces]
    paths = [tmp_path / str(number) for number in range(3)]
    for path, piece in zip(paths, pieces, strict=True):
        path.write_bytes(piece)

    def put_all():
        with ThreadPoolExecutor(3) as pool:
            assert sum(pool.map(transfer.put, lines, blobs, paths)) == len(CONTENT)

    assert 8 * len(CONTENT) / seconds(put_all) <= BPS
    for line in lines:
        line.close()


def test_a_line_that_is_closed_waits_for_no_turn(transport, source):
    connection = Connection.open(transport, sys.executable, bandwidth=Bandwidth(16e3))
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(transfer.put, connection, BLOB, source)
        connection.ask("stat", digests=[])
        connection.close()
        assert isinstance(busy.exception(60), ConnectionLost)


SLOW = """
import sys, time
from fedctl.incoming import PIECE
from fedctl.node.agent import GREETING, Line, encode_frame, encode_head, read_frame

out, line = sys.stdout.buffer, Line(0)
def say(*pieces):
    for piece in pieces:
        out.write(piece)
        out.flush()
say(GREETING)
read_frame(line.read)
say(encode_frame({"re": 1, **HELLO}))
read_frame(line.read), read_frame(line.read)
say(encode_head({"re": 2}, 5 * PIECE))
for number in range(COUNT):
    time.sleep(0.6)
    say(bytes(PIECE))
if COUNT < 5:
    time.sleep(60)
say(encode_frame({"re": 3, "last": True}))
"""
"""An agent at the end of a slow line: its first answer takes three seconds, its second one comes after that."""


class Slow:
    """Brings so many of five pieces, then nothing more."""

    def __init__(self, home, count):
        self.inner = LocalTransport(home=str(home))
        self.code = SLOW.replace("HELLO", repr(HELLO)).replace("COUNT", str(count))

    def open(self, argv):
        return self.inner.open((sys.executable, "-c", self.code))


def test_a_slow_line_is_waited_for_while_it_brings_what_others_asked_for(tmp_path):
    connection = Connection.open(Slow(tmp_path, 5), "python3", answer_s=20)
    connection._answer_s = 2.0
    large, small = connection.begin("read"), connection.begin("stat")
    assert small()[0]["last"]
    assert len(large()[1]) == 5 * PIECE
    connection.close()


def test_a_line_that_stops_in_the_middle_of_an_answer_is_lost(tmp_path):
    connection = Connection.open(Slow(tmp_path, 1), "python3", answer_s=20)
    connection._answer_s = 2.0
    connection.begin("read")
    with pytest.raises(ConnectionLost, match="has not answered `stat` for 2 s"):
        connection.begin("stat")()


def test_the_narrowest_of_a_machines_nodes_counts_for_all_its_lines(tmp_path):
    nodes = [
        Node(name="a", host="lab", bandwidth_bps=3e6),
        Node(name="b", host="lab", python="/opt/python", bandwidth_bps=2e6),
        Node(name="c", host="lab", user="other"),
        Node(name="d", host="lab", port=2222),
    ]
    federation = Federation(name="f", folder=tmp_path, task=TaskSpec(model="m.py:M", data="d.py:D"), nodes=tuple(nodes))
    work = Work(run="r", identity="i", bundle=BLOB, bundle_path=tmp_path, preload=(), cwd="/")
    hosts = Hosts(federation, work)
    limits = {name: hosts.of(name)._open.keywords["bandwidth"] for name in "abcd"}
    assert limits["a"] is limits["b"] is limits["c"]
    assert limits["a"].block == Bandwidth(2e6).block
    assert limits["d"] is None
    hosts.close()
