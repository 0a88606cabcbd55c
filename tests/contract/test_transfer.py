"""Large files to a real agent and back, over lines that break, past lies, and from two coordinators at once."""

import hashlib
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import pytest

from fedctl import transfer
from fedctl.connection import Connection
from fedctl.errors import ConnectionLost, NodeError
from fedctl.host import Host, Work
from fedctl.node.agent import BLOCK
from fedctl.records import Blob, TaskKey
from tests.contract.breaking import Breaking

MB = 2**20
CONTENT = os.urandom(5 * MB + 77)
BLOB = Blob(digest=hashlib.sha256(CONTENT).hexdigest(), size=len(CONTENT))
RUN = {"run": "one", "identity": "aaaa"}
OVERHEAD = 2**16
"""More than all headers of a transfer of these sizes."""


@pytest.fixture
def transport(tmp_path):
    transport = Breaking(tmp_path / "home")
    yield transport
    for line in transport.opened:
        line.kill()


@pytest.fixture
def connect(transport):
    return partial(Connection.open, transport, sys.executable, answer_s=60)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def there(tmp_path):
    return tmp_path / "home/blobs" / BLOB.digest


@pytest.fixture
def update(tmp_path, connect):
    """A task's update on the node."""
    connect().ask("list", **RUN)
    folder = tmp_path / "home/runs/one/r0001-alice-a1"
    folder.mkdir()
    (folder / "update.safetensors").write_bytes(CONTENT)
    return folder / "update.safetensors"


def reading(connection):
    return lambda offset, limit: connection.begin(
        "read", **RUN, key="r0001/alice/a1", name="update.safetensors", offset=offset, limit=limit
    )


def distant(monkeypatch):
    """As if every node were far away."""
    monkeypatch.setattr(transfer, "FAR_S", -1.0)
    monkeypatch.setattr(transfer, "WORTH_SPLITTING", MB)


# To a node


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, len(CONTENT)])
@pytest.mark.parametrize("is_far", [False, True])
def test_a_blob_arrives_whole_and_once(connect, tmp_path, monkeypatch, size, is_far):
    if is_far:
        distant(monkeypatch)
    connection, path = connect(), tmp_path / "source"
    path.write_bytes(CONTENT[:size])
    blob = Blob(digest=hashlib.sha256(CONTENT[:size]).hexdigest(), size=size)
    assert [transfer.put(connection, blob, path) for _ in range(2)] == [size, 0]
    assert [path.name for path in (tmp_path / "home/blobs").iterdir()] == [blob.digest]
    assert (tmp_path / "home/blobs" / blob.digest).read_bytes() == CONTENT[:size]


@pytest.mark.parametrize("cut", [0, 1, 9, 150, 5000, MB, MB + 200, 2 * MB + 1, 4 * MB + 777, 5 * MB + 76])
def test_an_upload_goes_on_at_the_byte_where_the_line_broke(transport, connect, source, there, cut):
    connection = connect()
    transport.break_after(up=cut)
    with pytest.raises(ConnectionLost):
        transfer.put(connection, BLOB, source)
    transport.opened[-1].wait()
    transport.break_after(up=10**12)
    sent = transfer.put(connect(), BLOB, source)
    assert BLOB.size - cut <= sent <= BLOB.size - cut + OVERHEAD
    assert transport.carried["up"] < BLOB.size + OVERHEAD + 2 * transport.carried["down"] + 10**5
    assert there.read_bytes() == CONTENT


def test_an_upload_over_a_line_that_breaks_all_the_time_arrives(transport, connect, source, there):
    tries = 0
    while not there.exists():
        transport.break_after(up=10**12)
        connection = connect()
        transport.break_after(up=300_000)
        with suppress(ConnectionLost):
            transfer.put(connection, BLOB, source)
        transport.opened[-1].close_stdin()
        transport.opened[-1].wait()
        tries += 1
    assert tries <= -(-BLOB.size // 299_000)
    assert there.read_bytes() == CONTENT


def test_an_upload_goes_on_though_the_agent_of_a_dead_line_knows_nothing_of_it(connect, source, there):
    dead = connect()
    for offset in range(0, 3 * MB, MB):
        dead.ask("put", CONTENT[offset : offset + MB], digest=BLOB.digest, size=BLOB.size, offset=offset)
    assert transfer.put(connect(), BLOB, source) == BLOB.size - 3 * MB
    assert there.read_bytes() == CONTENT


def test_wrong_bytes_that_another_agent_holds_cost_one_more_try(connect, source, there):
    wrong = connect()
    wrong.ask("put", b"!" * MB, digest=BLOB.digest, size=BLOB.size, offset=0)
    assert transfer.put(connect(), BLOB, source) == BLOB.size
    assert there.read_bytes() == CONTENT


def test_blocks_over_several_lines_need_not_come_again(transport, connect, source, there, monkeypatch):
    distant(monkeypatch)
    connection = connect()
    transport.break_after(up=3 * MB)
    with pytest.raises(ConnectionLost):
        transfer.put(connection, BLOB, source)
    for line in transport.opened:
        line.wait()
    transport.break_after(up=10**12)
    sent = transfer.put(connect(), BLOB, source)
    assert 0 < sent < BLOB.size
    assert there.read_bytes() == CONTENT


def test_what_was_begun_over_several_lines_is_finished_over_one(transport, connect, source, there, monkeypatch):
    with monkeypatch.context() as patch:
        distant(patch)
        connection = connect()
        transport.break_after(up=3 * MB)
        with pytest.raises(ConnectionLost):
            transfer.put(connection, BLOB, source)
    transport.break_after(up=10**12)
    connection, opened = connect(), len(transport.opened)
    assert 0 < transfer.put(connection, BLOB, source) < BLOB.size
    assert len(transport.opened) == opened
    assert there.read_bytes() == CONTENT


def test_what_was_begun_over_one_line_is_finished_over_several(transport, connect, source, there, monkeypatch):
    connection = connect()
    transport.break_after(up=2 * MB + 5000)
    with pytest.raises(ConnectionLost):
        transfer.put(connection, BLOB, source)
    transport.opened[-1].wait()
    distant(monkeypatch)
    transport.break_after(up=10**12)
    assert transfer.put(connect(), BLOB, source) == BLOB.size - 2 * MB
    assert there.read_bytes() == CONTENT


def test_a_server_that_opens_no_more_sessions_gets_it_over_one(transport, connect, source, there, monkeypatch):
    distant(monkeypatch)
    connection = connect()
    transport.refuse = True
    assert transfer.put(connection, BLOB, source) == BLOB.size
    assert there.read_bytes() == CONTENT


def test_one_line_of_several_may_break(transport, connect, source, there, monkeypatch):
    distant(monkeypatch)
    connection = connect()
    twin = connection.twin

    def broken_twin():
        line = twin()
        line.close()
        return line

    monkeypatch.setattr(connection, "twin", broken_twin)
    assert transfer.put(connection, BLOB, source) == BLOB.size
    assert there.read_bytes() == CONTENT


@pytest.mark.parametrize("is_far", [False, True])
def test_two_coordinators_that_send_one_blob_at_once_both_succeed(connect, source, there, monkeypatch, is_far):
    if is_far:
        distant(monkeypatch)
    connections = [connect() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        sent = list(pool.map(lambda connection: transfer.put(connection, BLOB, source), connections))
    assert all(size <= BLOB.size for size in sent)
    assert sum(sent) >= BLOB.size
    assert there.read_bytes() == CONTENT
    assert {path.name for path in there.parent.iterdir()} == {BLOB.digest}


@pytest.mark.parametrize("is_far", [False, True])
def test_bytes_that_are_not_the_blobs_are_refused_and_leave_nothing(connect, source, there, monkeypatch, is_far):
    if is_far:
        distant(monkeypatch)
    source.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    connection = connect()
    with pytest.raises(NodeError, match="are not those of") as caught:
        transfer.put(connection, BLOB, source)
    assert not isinstance(caught.value, ConnectionLost)
    assert not list(there.parent.iterdir())
    source.write_bytes(CONTENT)
    assert transfer.put(connection, BLOB, source) == BLOB.size


@pytest.mark.parametrize("is_far", [False, True])
def test_a_source_that_is_too_short_is_said_so(connect, source, monkeypatch, is_far):
    if is_far:
        distant(monkeypatch)
    source.write_bytes(CONTENT[: 2 * MB])
    with pytest.raises(NodeError, match="shorter than it should be"):
        transfer.put(connect(), BLOB, source)


def test_a_part_that_was_poisoned_costs_one_more_try(connect, source, there):
    there.parent.mkdir(parents=True)
    there.with_suffix(".part").write_bytes(b"!" * 2 * MB)
    assert transfer.put(connect(), BLOB, source) == BLOB.size
    assert there.read_bytes() == CONTENT


def test_poisoned_blocks_cost_one_more_try(connect, source, there, monkeypatch):
    distant(monkeypatch)
    connection = connect()
    connection.ask("split", digest=BLOB.digest, size=BLOB.size)
    connection.ask("put", b"!" * BLOCK, digest=BLOB.digest, offset=0, block=True)
    assert transfer.put(connection, BLOB, source) == BLOB.size
    assert there.read_bytes() == CONTENT


# From a node


@pytest.mark.parametrize("cut", [0, 1, 9, 60, 5000, MB, MB + 200, 2 * MB + 1, 4 * MB + 777, 5 * MB + 76])
@pytest.mark.parametrize("ahead", [1, 8])
def test_a_download_goes_on_at_the_byte_where_the_line_broke(
    transport, connect, update, tmp_path, monkeypatch, cut, ahead
):
    monkeypatch.setattr(transfer, "AHEAD", ahead)
    target = tmp_path / "updates" / "alice.safetensors"
    connection = connect()
    transport.break_after(down=cut)
    with pytest.raises(ConnectionLost):
        transfer.fetch(reading(connection), BLOB, target)
    assert cut - OVERHEAD <= transfer.kept(BLOB, target) <= cut
    transport.break_after(down=10**12)
    connection, before = connect(), transport.carried["down"]
    missing = BLOB.size - transfer.kept(BLOB, target)
    transfer.fetch(reading(connection), BLOB, target)
    assert missing <= transport.carried["down"] - before <= missing + OVERHEAD
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["alice.safetensors"]


def test_bytes_that_are_not_those_announced_are_refused_and_forgotten(connect, update, tmp_path):
    update.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    with pytest.raises(NodeError, match="not those that were announced"):
        transfer.fetch(reading(connect()), BLOB, tmp_path / "updates/alice")
    assert not list((tmp_path / "updates").iterdir())


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"x"])
def test_a_file_of_another_size_is_refused(connect, update, tmp_path, content):
    update.write_bytes(content)
    with pytest.raises(NodeError, match="not of the"):
        transfer.fetch(reading(connect()), BLOB, tmp_path / "updates/alice")
    assert not list((tmp_path / "updates").iterdir())


@pytest.mark.parametrize("kept", [b"!" * MB, CONTENT + b"!", CONTENT])
def test_what_an_earlier_try_left_is_taken_for_no_more_than_it_is(connect, update, tmp_path, kept):
    target = tmp_path / "alice"
    (tmp_path / f".alice.{BLOB.digest[:12]}.part").write_bytes(kept)
    (tmp_path / ".alice.0123456789ab.part").write_bytes(b"of another update")
    transfer.fetch(reading(connect()), BLOB, target)
    assert target.read_bytes() == CONTENT
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    "lie",
    [
        ({"size": BLOB.size}, b"x" * (BLOCK + 1)),
        ({"size": BLOB.size}, b""),
        ({"size": BLOB.size + 1}, CONTENT[:BLOCK]),
        ({"size": "x"}, CONTENT[:BLOCK]),
        ({}, CONTENT[:BLOCK]),
    ],
)
def test_an_answer_that_is_none_is_refused(tmp_path, lie):
    with pytest.raises(NodeError, match="not of the"):
        transfer.fetch(lambda offset, limit: lambda: lie, BLOB, tmp_path / "alice")


def test_each_missing_block_is_sent_once_whatever_a_node_says():
    said = {"blobs": {BLOB.digest: {"whole": False, "missing": [[4, 10**9], [-5, 2], [0, 6]] + [[0, 6]] * 10**6}}}
    assert transfer._stand(said, BLOB) == [0, 1, 2, 3, 4, 5]


def test_no_more_is_asked_for_than_may_wait_in_memory(tmp_path):
    content = bytes(40 * BLOCK)
    blob = Blob(digest=hashlib.sha256(content).hexdigest(), size=len(content))
    waiting = []

    def begin(offset, limit):
        waiting.append(limit)
        assert sum(waiting) <= transfer.AHEAD * BLOCK

        def wait():
            return {"size": blob.size}, bytes(waiting.pop())

        return wait

    transfer.fetch(begin, blob, tmp_path / "alice")
    assert (tmp_path / "alice").stat().st_size == blob.size


def test_a_host_fetches_an_update_through_lines_that_break(transport, update, tmp_path):
    work = Work(bundle=BLOB, bundle_path=update, preload=(), cwd="", **RUN)
    host = Host(transport, python=sys.executable, slots=1, work=work)
    host.tasks()
    transport.break_after(down=2 * MB)

    def heal():
        while transport.left["down"] > 0:
            time.sleep(0.001)
        transport.break_after(down=10**12)

    healer = threading.Thread(target=heal, daemon=True)
    healer.start()
    key = TaskKey.parse("r0001/alice/a1")
    assert host.fetch_update(key, BLOB, tmp_path / "updates/alice") == BLOB.size
    assert (tmp_path / "updates/alice").read_bytes() == CONTENT
    assert transport.carried["down"] < BLOB.size + OVERHEAD
    host.close()
