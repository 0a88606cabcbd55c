"""A real agent over a real command, and stand-ins that do not play by the rules."""

import hashlib
import itertools
import os
import queue
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedctl.connection import LINE_LOST, Connection
from fedctl.errors import ConnectionLost, NodeError
from fedctl.node.agent import GREETING, encode_frame
from fedctl.records import Blob
from fedctl.transfer import put
from fedctl.transports.local import LocalTransport

HELLO = {
    "protocol": 1,
    "cpus": 2,
    "memory": 3,
    "disk_free": 4,
    "time": 5.5,
    "python": "3.8.18",
    "system": "Linux",
    "hostname": "h",
    "home": "/home",
}
RUN = {"run": "one", "identity": "aaaa"}


class Recording:
    """The local transport; keeps what it opened."""

    def __init__(self, home):
        self.inner = LocalTransport(home=str(home))
        self.opened = []

    def open(self, argv):
        process = self.inner.open(argv)
        self.opened.append((argv, process))
        return process


class Instead(Recording):
    """Runs a stand-in whatever is asked for."""

    def __init__(self, home, *argv):
        super().__init__(home)
        self.argv = argv

    def open(self, argv):
        return super().open(self.argv)


@pytest.fixture
def transport(tmp_path):
    transport = Recording(tmp_path / "home")
    yield transport
    for _, process in transport.opened:
        process.kill()


@pytest.fixture
def connection(transport):
    connection = Connection.open(transport, sys.executable)
    yield connection
    connection.close()


@pytest.fixture
def standing_in(tmp_path):
    """A stand-in that hears the hello, writes `said`, hears something more, writes `more` and does as `then` says."""
    made = []

    def standing_in(said, more=b"", then="exec sleep 60", greeting=GREETING):
        for name, content in (("said", greeting + said), ("more", more)):
            (tmp_path / name).write_bytes(content)
        asked = len(encode_frame({"id": 1, "op": "hello"}))
        code = f"head -c {asked} >{tmp_path}/asked; cat {tmp_path}/said; head -c 1 >{tmp_path}/asked;"
        made.append(Instead(tmp_path / "home", "sh", "-c", f"{code} cat {tmp_path}/more; {then}"))
        return made[-1]

    yield standing_in
    for transport in made:
        for _, process in transport.opened:
            process.kill()


def pid_of(transport):
    return transport.opened[-1][1]._process.pid


def blob_of(tmp_path, content):
    path = tmp_path / "blob"
    path.write_bytes(content)
    return Blob(digest=hashlib.sha256(content).hexdigest(), size=len(content)), path


def hold(transport):
    """Stop the agent in its tracks, to be killed later: whoever asks now waits."""
    os.kill(pid_of(transport), signal.SIGSTOP)


def test_the_agent_is_installed_once(transport, tmp_path):
    Connection.open(transport, sys.executable).close()
    assert [argv[0] for argv, _ in transport.opened] == ["sh", "sh", "sh"]
    Connection.open(transport, sys.executable).close()
    assert [argv[0] for argv, _ in transport.opened[3:]] == ["sh"]
    assert len(list((tmp_path / "home").glob("agent-*.py"))) == 1


def test_the_agent_says_what_machine_it_is_on(connection, tmp_path):
    facts = connection.facts
    assert facts["home"] == str(tmp_path / "home")
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert abs(facts["time"] - time.time()) < 60
    assert facts["cpus"] >= 1
    assert facts["memory"] > 2**20
    assert facts["disk_free"] > 0


def test_a_refusal_is_a_node_error_and_the_line_lives_on(connection):
    with pytest.raises(NodeError, match="not a digest") as caught:
        connection.ask("stat", digests=["x"])
    assert not isinstance(caught.value, ConnectionLost)
    assert connection.ask("stat", digests=[]) == {"re": 3, "blobs": {}}


@pytest.mark.parametrize("size", [0, 1, 2**20, 5 * 2**20 + 7])
def test_a_blob_is_sent_once(connection, tmp_path, size):
    blob, path = blob_of(tmp_path, os.urandom(size))
    assert put(connection, blob, path) == size
    assert put(connection, blob, path) == 0
    assert (tmp_path / "home/blobs" / blob.digest).read_bytes() == path.read_bytes()


def test_a_blob_goes_on_after_the_agent_was_killed_in_the_middle(transport, tmp_path):
    blob, path = blob_of(tmp_path, os.urandom(24 * 2**20))
    part = tmp_path / "home/blobs" / f"{blob.digest}.part"
    first = Connection.open(transport, sys.executable)

    def kill_in_the_middle():
        while not part.exists() or part.stat().st_size < 2**20:
            time.sleep(0.001)
        os.kill(pid_of(transport), signal.SIGKILL)

    killer = threading.Thread(target=kill_in_the_middle, daemon=True)
    killer.start()
    with pytest.raises(ConnectionLost):
        put(first, blob, path)
    killer.join(10)
    have = part.stat().st_size
    assert 0 < have < blob.size
    second = Connection.open(transport, sys.executable)
    assert put(second, blob, path) == blob.size - have
    assert (tmp_path / "home/blobs" / blob.digest).read_bytes() == path.read_bytes()
    second.close()


def test_a_part_that_was_poisoned_is_sent_again_from_the_start(connection, tmp_path):
    blob, path = blob_of(tmp_path, os.urandom(3 * 2**20))
    (tmp_path / "home/blobs").mkdir()
    (tmp_path / "home/blobs" / f"{blob.digest}.part").write_bytes(b"poison")
    assert put(connection, blob, path) == blob.size


def test_a_file_that_is_not_its_blob_is_refused(connection, tmp_path):
    blob, path = blob_of(tmp_path, b"content")
    path.write_bytes(b"contend")
    with pytest.raises(NodeError, match="are not those of"):
        put(connection, blob, path)
    path.write_bytes(b"con")
    with pytest.raises(NodeError, match="shorter than it should be"):
        put(connection, blob, path)


def test_a_tasks_file_is_read_in_pieces(connection, tmp_path):
    connection.ask("list", **RUN)
    folder = tmp_path / "home/runs/one/r0001-alice-a1"
    folder.mkdir()
    content = os.urandom(300_000)
    (folder / "update.safetensors").write_bytes(content)
    came = b""
    while len(came) < len(content):
        answer, piece = connection.begin(
            "read", **RUN, key="r0001/alice/a1", name="update.safetensors", offset=len(came), limit=100_001
        )()
        assert answer["size"] == len(content)
        came += piece
    assert came == content


def test_many_threads_ask_at_once_and_each_gets_its_own_answer(connection):
    def ask(number):
        digests = [hashlib.sha256(f"{number}/{n}".encode()).hexdigest() for n in range(number % 7)]
        return list(connection.ask("stat", digests=digests)["blobs"]) == digests

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(400)))


def test_when_the_agent_is_killed_everyone_who_waits_hears_it(transport, connection):
    hold(transport)
    heard = queue.SimpleQueue()
    for key in ("r0001/alice/a1", "r0001/bob/a1"):
        connection.listen(key, heard.put)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(connection.ask, "hello") for _ in range(8)]
        time.sleep(0.1)
        os.kill(pid_of(transport), signal.SIGKILL)
        for each in asked:
            assert isinstance(each.exception(10), ConnectionLost)
    assert [heard.get(timeout=5) is LINE_LOST for _ in range(2)] == [True, True]
    assert connection.is_lost
    with pytest.raises(ConnectionLost, match="the agent has ended"):
        connection.ask("hello")


def test_when_the_line_is_closed_everyone_who_waits_hears_it(transport, connection):
    hold(transport)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(connection.ask, "hello")
        time.sleep(0.1)
        connection.close()
        assert isinstance(asked.exception(10), ConnectionLost)
    connection.close()


def test_an_agent_that_never_answers_is_a_lost_line_and_is_ended(transport):
    connection = Connection.open(transport, sys.executable, answer_s=0.5)
    hold(transport)
    with pytest.raises(ConnectionLost, match=r"has not answered `hello` for 0\.5 s"):
        connection.ask("hello")
    assert transport.opened[-1][1].wait() == -signal.SIGKILL


def test_an_agent_that_does_not_even_read_is_a_lost_line(transport, tmp_path):
    connection = Connection.open(transport, sys.executable, answer_s=0.5)
    hold(transport)
    with pytest.raises(ConnectionLost):
        connection.ask("put", b"x" * 2**22, digest="0" * 64, size=2**23, offset=0)


def test_a_stand_in_that_says_nothing_at_all_is_given_up(standing_in):
    with pytest.raises(NodeError, match="has not answered `hello`"):
        Connection.open(standing_in(b""), "python3", answer_s=0.3)


def hello(**changes):
    return encode_frame({"re": 1, **HELLO, **changes})


@pytest.mark.parametrize(
    "said",
    [
        b"Welcome to the machine!\nhave a nice day\n",
        b"\0" * 8,
        b"\0\0\0\x02\0\0\0\0[]",
        b"\0\0\0\x02\0\0\0\0{{",
        b"\xff" * 8,
        b"\0\x0f\0\0\0\0\0\0" + b"[" * 0x0F0000,
        encode_frame({"re": [1]}),
        encode_frame({"re": {}}),
        encode_frame({"re": 1}),
        encode_frame({"re": 1, "error": "no"}),
        hello(cpus="2"),
        hello(hostname=5),
        hello(time=None),
    ],
)
def test_garbage_is_a_node_error_and_no_hang(standing_in, said):
    transport = standing_in(said)
    with pytest.raises(NodeError):
        Connection.open(transport, "python3", answer_s=20)
    assert transport.opened[-1][1].wait() == -signal.SIGKILL


def test_a_greeting_goes_into_the_journal_without_what_is_strange(standing_in):
    connection = Connection.open(standing_in(hello(hostname="a\x1b]0;b\udc80", more="x", memory=10**30)), "python3")
    assert connection.facts == {**HELLO, "hostname": "a\ufffd]0;b\ufffd", "memory": 2**63}
    connection.close()


def test_a_flood_is_a_lost_line_and_no_hang(standing_in):
    transport = standing_in(hello(), then="exec yes garbage")
    connection = Connection.open(transport, "python3", answer_s=20)
    with pytest.raises(ConnectionLost, match="a frame claims"):
        connection.ask("list")
    assert transport.opened[-1][1].wait() == -signal.SIGKILL


def test_a_listener_that_fails_breaks_the_line_and_nobody_waits_for_ever(standing_in):
    transport = standing_in(hello(), more=encode_frame({"push": "progress", "key": "k", "progress": {}}))
    connection = Connection.open(transport, "python3", answer_s=20)
    heard = []

    def fail(push):
        heard.append(push)
        if push is not LINE_LOST:
            raise RuntimeError("a bug of ours")

    connection.listen("k", fail)
    transport.opened[-1][1].write(b"\n")
    with pytest.raises(ConnectionLost, match="a bug of ours"):
        connection.ask("hello")
    assert heard[-1] is LINE_LOST


@pytest.mark.parametrize(
    "stat",
    [{}, {"blobs": []}, {"blobs": {"0" * 64: {"whole": 5}}}, {"blobs": {"0" * 64: {"whole": False, "size": "x"}}}],
)
def test_an_answer_of_the_wrong_shape_is_a_node_error(standing_in, stat):
    transport = standing_in(hello(), more=encode_frame({"re": 2, **stat}))
    connection = Connection.open(transport, "python3", answer_s=20)
    with pytest.raises(NodeError, match="`stat` is not one"):
        put(connection, Blob(digest="0" * 64, size=5), Path("/dev/null"))
    connection.close()


@pytest.mark.parametrize(("status", "said"), [(0, ""), (1, "no python here")])
def test_an_agent_that_ends_at_once_is_shown_with_its_last_words(tmp_path, status, said):
    transport = Instead(tmp_path, "sh", "-c", f"echo first >&2; echo {said!r} >&2; exit {status}")
    with pytest.raises(NodeError, match=f"the agent did not start: {said or 'first'}"):
        Connection.open(transport, "python3")


def test_a_home_that_cannot_be_made_is_shown_with_a_remedy(tmp_path):
    (tmp_path / "home").write_text("a file in the way")
    with pytest.raises(NodeError, match="fedctl cannot keep its files there: file exists") as caught:
        Connection.open(LocalTransport(home=str(tmp_path / "home")), sys.executable)
    assert "`home:`" in caught.value.hint


def test_a_python_that_is_missing_is_named(tmp_path):
    with pytest.raises(NodeError, match="/no/python"):
        Connection.open(LocalTransport(home=str(tmp_path / "home")), "/no/python")


def test_numbers_are_not_used_twice(connection):
    assert [connection.ask("hello")["re"] for _ in range(3)] == list(itertools.islice(itertools.count(2), 3))
