"""Servers that do not play by the rules, and bastions that are away: each costs its own node, and no more."""

import os
import signal
import socket
import struct
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedctl.errors import LoginError, NodeError, Unreachable
from fedctl.transports import client, sockets, ssh
from tests.bed import keys


def packet(payload):
    """As SSH has it before there are keys."""
    padding = 16 - (len(payload) + 5) % 8
    return struct.pack(">IB", len(payload) + padding + 1, padding) + payload + bytes(padding)


INVITATION = b"SSH-2.0-x\r\n"
NO_TEXTS = 10 * (struct.pack(">I", 2) + b"\xff\xfe")


@pytest.fixture
def stranger(monkeypatch):
    """The port of a server that says the same to whoever comes."""
    monkeypatch.setattr(client, "PATIENCE_S", 0.0)
    listeners = []

    def stranger(said):
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def answer():
            while True:
                try:
                    caller, _ = listener.accept()
                except OSError:
                    return
                with caller:
                    caller.sendall(said)
                    caller.recv(2**16)

        threading.Thread(target=answer, daemon=True).start()
        return listener.getsockname()[1]

    yield stranger
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize(
    "words",
    [
        INVITATION + packet(b"\x14" + bytes(16) + NO_TEXTS + bytes(5)),
        INVITATION + packet(b"\x14short"),
        INVITATION + bytes(64),
        b"HTTP/1.1 400 \x1b[31mBad Request\x07\r\n" * 200,
        b"",
    ],
    ids=["no text", "short", "zeros", "another protocol", "nothing"],
)
def test_whatever_a_server_says_is_an_error_of_its_node(home, plain, open_on, stranger, words):
    with pytest.raises(NodeError) as error:
        open_on("plain", "true", port=stranger(words))
    assert error.value.message.isprintable()


@pytest.mark.parametrize("host", ["a..b", f"{'a' * 70}.example.org"])
def test_what_can_be_no_name_is_unreachable(home, open_on, host):
    with pytest.raises(Unreachable, match="is not known"):
        open_on(host, "true")


@pytest.mark.parametrize("setting", [{"ServerAliveCountMax": 1000}, {"ServerAliveInterval": 86400}])
def test_more_patience_than_the_system_has_does_no_harm(home, plain, said, setting):
    home.alias("patient", plain, **setting)
    assert said("patient", "echo", "in") == "in\n"


def test_an_algorithm_that_cannot_be_had_is_an_error_of_its_node(home, plain, open_on):
    home.alias("old", plain, MACs="umac-64@openssh.com")
    with pytest.raises(NodeError, match="allows no MACs that fedctl has"):
        open_on("old", "true")


def test_a_dead_bastion_costs_the_nodes_behind_it_one_timeout(home, plain, open_on):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf, socket.socket() as first, socket.socket() as second:
        for caller in (first, second):
            caller.setblocking(False)
            caller.connect_ex(deaf.getsockname())
        home.alias("dead-bastion", plain, Port=deaf.getsockname()[1], ConnectTimeout=2)

        def fail(number):
            with pytest.raises(Unreachable, match="nothing came within 2 s"):
                open_on(f"behind-{number}", "true", jump="dead-bastion")

        before = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(fail, range(8)))
        assert time.monotonic() - before < 8


def test_a_line_that_stands_still_keeps_nobody_from_the_server(home, said, monkeypatch):
    monkeypatch.setattr(ssh, "OPEN_S", 1.0)
    server = home.add("stops")
    assert said("stops", "echo", "in") == "in\n"
    sessions = server._sessions()
    for pid in sessions:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert said("stops", "echo", "in") == "in\n"
    finally:
        for pid in sessions:
            os.kill(pid, signal.SIGCONT)


def test_what_never_answers_is_closed_and_what_answers_is_not():
    ours, theirs = socket.socketpair()
    with ours, theirs, sockets.closing_after(0.05, theirs):
        assert ours.recv(1) == b""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with sockets.closing_after(0.05, theirs):
            pass
        time.sleep(0.2)
        ours.send(b"x")
        assert theirs.recv(1) == b"x"


def test_new_keys_on_a_far_line_meet_no_keepalive(relayed_bed, at_home, open_on):
    server = at_home(relayed_bed).add("far", config=["RekeyLimit 64K"])
    relayed_bed.alias("soon", server, ServerAliveInterval=1, ServerAliveCountMax=4)
    process = open_on("soon", "sh", "-c", "head -c 70000 /dev/zero; sleep 1; head -c 30000 /dev/zero")
    relayed_bed.relay(server).shape(delay=0.7)
    assert len(process.read(100_000)) == 100_000


def test_a_proxy_command_is_killed_once(home, plain, open_on, monkeypatch):
    """By the second time its number may be a stranger's."""
    killed, kill = [], os.killpg
    monkeypatch.setattr(os, "killpg", lambda *group: (killed.append(group), kill(*group)))
    home.alias("killed-once", plain, ProxyCommand=f"ssh -F {home.config} -W %h:%p plain")
    process = open_on("killed-once", "true")
    assert process.wait() == 0
    line = process._end.args[0].transport
    for _ in range(3):
        line.sock.close()
    assert len(killed) == 1


def test_a_proxy_command_that_fails_is_quoted_at_once(home, plain, open_on):
    home.alias("no-way", plain, ProxyCommand="sh -c 'echo the tunnel is closed >&2; exit 3'")
    before = time.monotonic()
    with pytest.raises(Unreachable, match="the ProxyCommand to no-way said: the tunnel is closed"):
        open_on("no-way", "true")
    assert time.monotonic() - before < client.PATIENCE_S / 2


def test_a_packet_of_gigabytes_is_not_waited_for(home, plain, open_on, stranger):
    with pytest.raises(NodeError, match="a packet claims"):
        open_on("plain", "true", port=stranger(INVITATION + struct.pack(">IB", 2**31 + 4, 4) + bytes(2**16)))


def test_an_agent_that_does_not_sign_is_named(home, plain, open_on, monkeypatch, tmp_path):
    with keys.agent(tmp_path / "socket", plain.key) as environment:
        monkeypatch.setenv("SSH_AUTH_SOCK", environment["SSH_AUTH_SOCK"])
        home.alias("unsigned", plain, IdentityFile=None, IdentitiesOnly="no")
        for words in (["-D"], ["-c", str(plain.key)]):  # a key whose use nobody is there to confirm
            subprocess.run(["ssh-add", *words], env={**os.environ, **environment}, check=True, capture_output=True)
        with pytest.raises(LoginError, match="the agent does not sign with a key of the agent"):
            open_on("unsigned", "true")
