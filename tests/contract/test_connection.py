"""A real agent over a real command, and stand-ins that do not play by the rules."""

import hashlib
import itertools
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedctl.connection import LINE_LOST, Connection
from fedctl.errors import ConnectionLost, NodeError, ProtocolError
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

    def standing_in(said, more=b"", then="exec sleep 60", asked_more=0):
        for name, content in (("said", GREETING + said), ("more", more)):
            (tmp_path / name).write_bytes(content)
        asked = len(encode_frame({"id": 1, "op": "hello"})) + asked_more
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
    connection = Connection.open(transport, sys.executable)
    connection._answer_s = 0.5
    hold(transport)
    with pytest.raises(ConnectionLost, match=r"has not answered `hello` for 0\.5 s"):
        connection.ask("hello")
    assert transport.opened[-1][1].wait() == -signal.SIGKILL


def test_an_agent_that_does_not_even_read_is_a_lost_line(transport, tmp_path):
    connection = Connection.open(transport, sys.executable)
    connection._answer_s = 0.5
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


@pytest.mark.parametrize("came", [0, 3])
def test_an_answer_that_was_cut_off_counts_as_far_as_it_came(standing_in, came):
    """Where nothing of its body came it is a line that broke, and not an empty answer."""
    whole = encode_frame({"re": 2, "size": 5}, b"12345")
    transport = standing_in(hello(), then=f"head -c 1 >&2; printf {octal(whole[: len(whole) - 5 + came])}")
    connection = Connection.open(transport, "python3", answer_s=20)
    if came:
        assert connection.begin("read")() == ({"re": 2, "size": 5}, b"123")
    else:
        with pytest.raises(ConnectionLost):
            connection.begin("read")()
    connection.close()


def octal(data):
    return "'" + "".join(f"\\{byte:03o}" for byte in data) + "'"


def test_an_agent_of_another_version_is_refused(standing_in):
    transport = standing_in(hello(protocol=2))
    with pytest.raises(NodeError, match="speaks protocol 2, and this fedctl 1") as raised:
        Connection.open(transport, "python3", answer_s=20)
    assert "forced command" in raised.value.hint


ENROLLED = {"enrolled": True, "version": "0.9", "agent": "0" * 12, "identity": f"SHA256:{'A' * 43}", "required": []}


def test_an_enrolled_agent_of_another_release_is_spoken_to_and_told_of(standing_in):
    told = {**ENROLLED, "version": "0.9\x1b[2J", "required": ["differential_privacy", "a walk"]}
    connection = Connection.open(standing_in(hello(**told)), "python3", answer_s=20)
    assert connection.facts["version"] == "0.9\ufffd[2J"
    assert connection.facts["agent"] == "0" * 12
    assert connection.facts["required"] == ["differential_privacy"]
    connection.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"identity": "SHA256:short"},
        {"identity": f"SHA256:{'A' * 43}\n"},
        {"identity": 7},
        {"agent": "../../etc/pa"},
        {"agent": None},
        {"version": "9" * 1000},
        {"required": "secure_aggregation"},
    ],
)
def test_a_greeting_that_says_enrolled_and_not_how_is_refused(standing_in, wrong):
    with pytest.raises(NodeError, match="says that the node is enrolled, and not how"):
        Connection.open(standing_in(hello(**{**ENROLLED, **wrong})), "python3", answer_s=20)


def test_a_cut_off_answer_to_nobody_is_a_broken_protocol_and_no_hang(standing_in):
    transport = standing_in(hello(), more=encode_frame({"re": []}, b"whole")[:-1], then="exit 0")
    connection = Connection.open(transport, "python3", answer_s=20)
    before = time.monotonic()
    with pytest.raises(ProtocolError, match="it answers what it was not asked"):
        connection.ask("stat", digests=[])
    assert time.monotonic() - before < 10


def test_a_flood_of_garbage_is_a_broken_protocol_and_no_hang(standing_in):
    transport = standing_in(hello(), then="exec yes garbage")
    connection = Connection.open(transport, "python3", answer_s=20)
    with pytest.raises(ProtocolError, match="the agent breaks the protocol: a frame claims"):
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


# What a login may print, and where no agent comes


class Shell(Recording):
    """Runs what is asked for after, or instead of, something else."""

    def __init__(self, home, script):
        super().__init__(home)
        self.script = script

    def open(self, argv):
        return super().open(("sh", "-c", self.script, "sh", *argv))


@pytest.fixture
def behind(tmp_path):
    """A transport whose server runs a script; in it, `"$@"` is what was asked for."""
    made = []

    def behind(script):
        made.append(Shell(tmp_path / "home", script))
        return made[-1]

    yield behind
    for transport in made:
        for _, process in transport.opened:
            process.kill()


def test_a_silent_login_makes_no_noise(connection):
    assert connection.noise == ""


@pytest.mark.parametrize(
    ("printed", "noise"),
    [
        ("echo welcome to the lab; echo; echo have a nice day", "welcome to the lab\n\nhave a nice day"),
        ("printf 'no line break'", "no line break"),
        (r"printf '\033[1mbold\033[0m \000\001'", "\ufffd[1mbold\ufffd[0m \ufffd\ufffd"),
        (r"printf '\000fedctl agent \000'", "\ufffdfedctl agent \ufffd"),
        ("head -c 200000 /dev/zero | tr '\\0' x", "x" * 500),
        ("echo careful >&2", ""),
    ],
)
def test_what_a_login_prints_is_noise_and_breaks_nothing(behind, tmp_path, printed, noise):
    connection = Connection.open(behind(f'{printed}; exec "$@"'), sys.executable)
    assert connection.noise == noise
    assert connection.ask("stat", digests=[])["blobs"] == {}
    connection.close()


@pytest.mark.parametrize(
    ("script", "line"),
    [
        ("echo This account is not available; exit 1", "This account is not available"),
        ("echo 1. mail; echo 2. news; exec sleep 60", "1. mail"),
        ("printf 'choose: '; exec sleep 60", "choose:"),
        ("exec yes garbage", "garbage"),
    ],
)
def test_a_server_that_runs_something_else_is_told_from_a_node_without_python(behind, script, line):
    with pytest.raises(NodeError, match=f"ran something else than fedctl's agent: {line}$") as caught:
        Connection.open(behind(script), sys.executable, answer_s=1)
    assert "`ForceCommand`" in caught.value.hint
    assert "authorized_keys" in caught.value.hint


def test_a_server_that_only_listens_is_given_up(behind):
    with pytest.raises(ConnectionLost, match="has not answered `hello`"):
        Connection.open(behind("exec sleep 60"), sys.executable, answer_s=0.5)


@pytest.mark.parametrize("python", ["/no/python", "no-such-python"])
def test_a_python_that_is_missing_is_named_with_a_remedy(tmp_path, python):
    with pytest.raises(NodeError, match=f"there is no `{python}` there") as caught:
        Connection.open(LocalTransport(home=str(tmp_path / "home")), python)
    assert "`python:`" in caught.value.hint


def test_a_python_that_cannot_be_run_is_named(tmp_path):
    (tmp_path / "python").write_text("no program")
    with pytest.raises(NodeError, match="python` cannot be run there"):
        Connection.open(LocalTransport(home=str(tmp_path / "home")), str(tmp_path / "python"))


TOO_OLD = [str(place) for minor in (2, 3) for place in Path.home().glob(f".pyenv/versions/{minor}.*/bin/python")]
TOO_OLD = [place for place in TOO_OLD if int(place.split("versions/")[1].split(".")[1]) < 8]


@pytest.mark.parametrize("is_installed", [False, True])
def test_a_python_that_is_too_old_is_named_with_its_version(tmp_path, transport, is_installed):
    if is_installed:
        Connection.open(transport, sys.executable).close()
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\ntest "$1" = --version && echo Python 3.6.15 || { echo SyntaxError >&2; exit 1; }\n')
    old.chmod(0o700)
    for python in (str(old), *TOO_OLD):
        with pytest.raises(NodeError, match=r"` there is Python (2|3\.[67])\.[0-9.]+, and fedctl needs 3\.8") as caught:
            Connection.open(transport, python)
        assert "`python:`" in caught.value.hint


@pytest.mark.parametrize(("status", "said"), [(0, ""), (1, "no luck here")])
def test_an_agent_that_ends_at_once_is_shown_with_its_last_words(tmp_path, status, said):
    transport = Instead(tmp_path, "sh", "-c", f"echo first >&2; echo {said!r} >&2; exit {status}")
    with pytest.raises(NodeError, match=f"the agent did not start: {said or 'first'}"):
        Connection.open(transport, sys.executable)


def test_a_home_that_cannot_be_made_is_shown_with_a_remedy(tmp_path):
    (tmp_path / "home").write_text("a file in the way")
    with pytest.raises(NodeError, match="fedctl cannot keep its files there: file exists") as caught:
        Connection.open(LocalTransport(home=str(tmp_path / "home")), sys.executable)
    assert "`home:`" in caught.value.hint


def can_mount():
    return subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], stderr=subprocess.DEVNULL)


MOUNTS = [
    ("mount -t tmpfs -o size=8k none", "no space left on device", "make room there"),
    ("mount -t tmpfs -o ro none", "read-only file system", "let that account write there"),
]


@pytest.mark.parametrize(("mount", "reason", "remedy"), MOUNTS if can_mount().returncode == 0 else [])
def test_a_home_that_is_full_or_read_only_is_shown_with_a_remedy(behind, tmp_path, mount, reason, remedy):
    (tmp_path / "home").mkdir()
    inside = f'{mount} {tmp_path}/home && exec "$@"'
    script = f'exec unshare -rm sh -c {shlex.quote(inside)} sh "$@"'
    with pytest.raises(NodeError, match=f"fedctl cannot keep its files there: {reason}") as caught:
        Connection.open(behind(script), sys.executable)
    assert caught.value.hint.startswith(remedy)
    assert "`home:`" in caught.value.hint


def test_a_home_that_fills_up_is_shown_with_a_remedy(behind, tmp_path):
    script = 'ulimit -f 4096; trap "" XFSZ; exec "$@"'  # a file over 2 or 4 MB is one too many
    connection = Connection.open(behind(script), sys.executable)
    blob, path = blob_of(tmp_path, os.urandom(6 * 2**20))
    with pytest.raises(NodeError, match="too large"):
        put(connection, blob, path)
    assert connection.ask("stat", digests=[])["blobs"] == {}
    connection.close()


def test_needs_are_told_with_the_greeting_and_answered_with_it(standing_in):
    has = {"bundle": True}
    needs = {"bundle": "0" * 64}
    asked = len(encode_frame({"id": 1, "op": "hello", "needs": needs})) - len(encode_frame({"id": 1, "op": "hello"}))
    transport = standing_in(hello(has=has), asked_more=asked)
    connection = Connection.open(transport, "python3", needs=needs)
    assert connection.has == has
    connection.close()


def test_a_second_line_to_the_same_node_is_another_agent(connection, transport):
    twin = connection.twin()
    assert twin.facts["home"] == connection.facts["home"]
    assert len({process._process.pid for _, process in transport.opened}) == len(transport.opened)
    twin.close()
    assert not connection.is_lost


def test_a_small_exchange_is_timed_once(connection, monkeypatch):
    assert 0 < connection.rtt_s() < 5
    monkeypatch.setattr(connection, "ask", None)
    assert connection.rtt_s() < 5


def test_numbers_are_not_used_twice(connection):
    assert [connection.ask("hello")["re"] for _ in range(3)] == list(itertools.islice(itertools.count(2), 3))
