"""Many who open channels on one line at once: each is refused or served by itself, and the line lives on."""

import socket
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from fedctl.errors import LoginError, Unreachable
from fedctl.transports import ssh

MANY = 8


def all_at_once(action):
    """What the action gives, called by many threads at the same moment."""
    barrier = Barrier(MANY)

    def act(number):
        barrier.wait()
        return action(number)

    with ThreadPoolExecutor(MANY) as pool:
        return list(pool.map(act, range(MANY)))


@pytest.fixture
def echo(open_on):
    """Start `cat` on a host; it is asked whether it still lives."""

    def start(host, **fields):
        process = open_on(host, "cat", **fields)

        def answers():
            process.write(b"x")
            return process.read(1) == b"x"

        assert answers()
        return answers

    return start


def test_sessions_that_are_refused_at_once_break_no_other(home, open_on, echo):
    server = home.add("one-at-a-time", config=["MaxSessions 2"])
    lives = echo("one-at-a-time")

    def say(number):
        process = open_on("one-at-a-time", "echo", str(number))
        process.close_stdin()
        return process.read(10)

    assert all_at_once(say) == [b"%d\n" % number for number in range(MANY)]
    assert lives()
    assert "no more sessions" in server.log


def test_a_line_whose_session_has_just_ended_is_no_closed_one(home, open_on):
    home.add("one-by-one", config=["MaxSessions 1"])
    for number in range(10):
        process = open_on("one-by-one", "echo", str(number))
        process.close_stdin()
        assert process.read(10) == b"%d\n" % number


def test_nodes_that_a_bastion_does_not_reach_keep_it_for_the_others(home, plain, open_on, echo):
    bastion = home.add("busy-bastion")
    lives = echo("plain", jump=bastion.name)

    def fail(number):
        with pytest.raises(Unreachable, match="busy-bastion does not reach"):
            open_on("127.0.0.1", "true", port=number + 1, user=plain.user, jump=bastion.name)

    all_at_once(fail)
    assert lives()


def test_a_node_behind_a_bastion_that_never_answers_keeps_it_for_the_others(home, plain, open_on, echo, monkeypatch):
    monkeypatch.setattr(ssh, "OPEN_S", 1.0)
    bastion = home.add("waiting-bastion")
    lives = echo("plain", jump=bastion.name)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf, socket.socket() as first, socket.socket() as second:
        for client in (first, second):
            client.setblocking(False)
            client.connect_ex(deaf.getsockname())
        with pytest.raises(Unreachable, match="waiting-bastion does not reach"):
            open_on("127.0.0.1", "true", port=deaf.getsockname()[1], user=plain.user, jump=bastion.name)
    assert lives()


def test_a_bastion_that_forbids_forwarding_says_so_to_each(home, plain, open_on):
    home.add("closed-to-all", config=["AllowTcpForwarding no"])

    def fail(_):
        with pytest.raises(LoginError, match="closed-to-all forbids forwarding"):
            open_on("plain", "true", jump="closed-to-all")

    all_at_once(fail)
