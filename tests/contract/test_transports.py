"""Every transport: a way to run a command on a node with its stdin, stdout, stderr and exit status."""

import hashlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from fedctl.errors import NodeError
from fedctl.federation import Node
from fedctl.transports import Transports
from fedctl.transports.local import LocalTransport
from tests.bed.loopback import LoopbackBed

PYTHON = sys.executable


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    with LoopbackBed(tmp_path_factory.mktemp("bed")) as bed:
        bed.add("alice")
        yield bed


@pytest.fixture(params=["local", "ssh"])
def transport(request, tmp_path, monkeypatch):
    if request.param == "local":
        yield LocalTransport(home=str(tmp_path / "home"))
        return
    bed = request.getfixturevalue("bed")
    for name, value in bed.environment.items():
        monkeypatch.setenv(name, value)
    transports = Transports(tmp_path)
    yield transports.to(Node(name="alice", host="alice"))
    transports.close()


@pytest.fixture
def start(transport):
    """Open a command that is ended when the test is over."""
    opened = []

    def start(*argv):
        opened.append(transport.open(argv))
        return opened[-1]

    yield start
    for process in opened:
        process.kill()


def finish(process):
    """All of stdout, and the exit status."""
    process.close_stdin()
    pieces = []
    while piece := process.read(2**16):
        pieces.append(piece)
    return b"".join(pieces), process.wait()


@pytest.mark.parametrize(
    "word",
    ["two words", "", "'", '"', "a'b\"c", "$HOME", "`id`", "$(id)", "\\", "*", ";ls", "a\nb", "é√", "-c", "!x", "#"],
)
def test_words_arrive_as_they_were_given(start, word):
    code = "import os, sys; sys.stdout.buffer.write(b'|'.join(map(os.fsencode, sys.argv[1:])))"
    assert finish(start(PYTHON, "-c", code, word, "end")) == (word.encode() + b"|end", 0)


@pytest.mark.parametrize("status", [0, 1, 90, 255])
def test_the_exit_status_comes_back(start, status):
    assert finish(start("sh", "-c", f"exit {status}")) == (b"", status)


def test_bytes_are_left_as_they_are(start):
    data = bytes(range(256)) * 33 + b"\r\n\x03\x04\x11\x13~."
    process = start("cat")
    process.write(data)
    assert finish(process) == (data, 0)


def test_stdout_is_read_in_exact_pieces(start):
    process = start("sh", "-c", "printf ab; sleep 0.1; printf cdefg")
    assert [process.read(size) for size in (3, 0, 2, 9, 9)] == [b"abc", b"", b"de", b"fg", b""]


def test_a_lot_goes_both_ways_at_once(start):
    process, data = start("cat"), os.urandom(2**20) * 16
    seen, size = hashlib.sha256(), 0

    def write():
        process.write(data)
        process.close_stdin()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    while piece := process.read(2**18):
        seen.update(piece)
        size += len(piece)
    writer.join(20)
    assert (size, seen.digest()) == (len(data), hashlib.sha256(data).digest())
    assert process.wait() == 0


def test_stderr_is_apart_and_however_long_holds_nothing_up(start):
    code = "import sys; sys.stderr.write('x' * 3_000_000 + '\\nthe last words\\n'); sys.stdout.write('out')"
    process = start(PYTHON, "-c", code)
    assert finish(process) == (b"out", 0)
    assert process.errors().endswith("xxx\nthe last words\n")
    assert len(process.errors()) <= 4000


def test_looking_at_stderr_takes_nothing_from_it(start):
    process = start("sh", "-c", "for i in 1 2 3 4 5; do echo line $i >&2; read x; done; echo done")
    for number in range(1, 6):
        deadline = time.monotonic() + 10
        while f"line {number}" not in process.errors():
            assert time.monotonic() < deadline, process.errors()
            time.sleep(0.01)
        process.write(b"\n")
    assert finish(process) == (b"done\n", 0)
    assert process.errors() == "".join(f"line {number}\n" for number in range(1, 6))


def test_stderr_that_is_no_text_is_shown_all_the_same(start):
    process = start("sh", "-c", r"printf 'bad \377 byte' >&2")
    finish(process)
    assert process.errors() == "bad \ufffd byte"


def test_a_command_sees_the_end_of_its_stdin(start):
    process = start("sh", "-c", "cat; echo end")
    process.write(b"a\n")
    assert finish(process) == (b"a\nend\n", 0)


def test_writing_to_a_command_that_has_gone_is_an_oserror(start):
    process = start("true")
    process.wait()
    with pytest.raises(OSError):
        write_on(process)


def write_on(process):
    for _ in range(100):
        process.write(b"x" * 2**16)
        time.sleep(0.01)


def test_killing_wakes_whoever_reads_and_ends_a_command_that_reads(start):
    process = start("sh", "-c", "echo $$; exec cat")
    pid = int(b"".join(iter(lambda: process.read(1), b"\n")))
    read = []
    reader = threading.Thread(target=lambda: read.append(process.read(1)), daemon=True)
    reader.start()
    time.sleep(0.05)
    process.kill()
    reader.join(10)
    assert read == [b""]
    assert process.wait() != 0
    wait_for_the_end_of(pid)


def test_killing_ends_what_a_local_command_started(tmp_path):
    """Elsewhere it depends on the server: OpenSSH hands no signal to root's commands, or to forced ones."""
    process = LocalTransport(home=str(tmp_path)).open(["sh", "-c", "sleep 60 & echo $!; wait"])
    child = int(b"".join(iter(lambda: process.read(1), b"\n")))
    process.kill()
    wait_for_the_end_of(child)


def wait_for_the_end_of(pid):
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killing_frees_whoever_writes_to_a_command_that_does_not_read(start):
    process, raised = start("sleep", "60"), []

    def write():
        try:
            process.write(b"x" * 2**24)
        except (OSError, ValueError) as error:
            raised.append(error)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    time.sleep(0.1)
    process.kill()
    writer.join(10)
    assert not writer.is_alive()
    assert raised


def test_killing_twice_or_too_late_is_no_matter(start):
    process = start("sh", "-c", "exit 7")
    assert process.wait() == 7
    process.kill()
    process.kill()
    assert process.wait() == 7
    assert process.read(10) == b""


def test_a_program_that_is_missing_is_named(transport):
    """Here it is an error at once; elsewhere a shell says it."""
    if isinstance(transport, LocalTransport):
        with pytest.raises(NodeError, match="cannot run no-such-program-here"):
            transport.open(["no-such-program-here", "x"])
    else:
        process = transport.open(["no-such-program-here", "x"])
        assert finish(process) == (b"", 127)
        assert "no-such-program-here" in process.errors()


def test_local_nodes_keep_their_files_where_they_were_asked_to(tmp_path):
    process = LocalTransport(home=str(tmp_path / "home")).open(["sh", "-c", 'printf %s "$FEDCTL_HOME"'])
    assert finish(process) == (str(tmp_path / "home").encode(), 0)


def is_running(pid):
    """Not gone, and not only waiting to be reaped."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_signal_of_a_killed_command_is_not_taken_for_success(start):
    assert finish(start("sh", "-c", f"kill -{int(signal.SIGTERM)} $$"))[1] != 0
