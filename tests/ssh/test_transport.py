"""The transport `ssh` against real servers: the ways to a node, the limits of servers, and lines that fail."""

import contextlib
import hashlib
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedctl.errors import LoginError, Unreachable
from fedctl.federation import Node
from fedctl.transports import Transports


def has_ipv6():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


ADDRESSES = ["127.0.0.1", "::1"] if has_ipv6() else ["127.0.0.1"]


# The way there


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_host_is_reached_by_its_name_in_ssh_config(home, said, address):
    server = home.add(f"at-{address.replace(':', '-')}", address=address)
    assert said(server.name, "sh", "-c", "echo $HOME") == f"{server.home}\n"


def test_a_host_is_reached_by_what_fed_yaml_says_alone(home, plain, said):
    fields = {"user": plain.user, "port": plain.port, "key": str(home.key)}
    assert said("127.0.0.1", "echo", "in", **fields) == "in\n"


@pytest.mark.parametrize("number", [1, 2])
def test_a_node_is_reached_through_bastions(home, plain, said, number):
    bastions = home.add_all([f"bastion-{number}-{place}" for place in range(number)])
    names = ",".join(bastion.name for bastion in bastions)
    home.alias(f"behind-{number}", plain, ProxyJump=names)
    assert said(f"behind-{number}", "echo", "in") == "in\n"
    assert all("Accepted publickey" in bastion.log for bastion in bastions)
    assert said("plain", "echo", "in", jump=names) == "in\n"


def test_nodes_behind_one_bastion_share_its_line(home, plain, open_on):
    bastion = home.add("shared-bastion")
    inner = home.add("second-inner")
    started = [open_on(name, "cat", jump=bastion.name) for name in (plain.name, inner.name, plain.name)]
    assert bastion.log.count("Accepted publickey") == 1
    for process in started:
        process.kill()


def test_a_bastion_that_forbids_forwarding_is_named(home, plain, open_on):
    home.add("closed-bastion", config=["AllowTcpForwarding no"])
    with pytest.raises(LoginError, match="closed-bastion forbids forwarding"):
        open_on("plain", "true", jump="closed-bastion")


def test_a_bastion_that_does_not_reach_the_node_is_named(home, plain, open_on):
    home.add("lost-bastion")
    home.alias("nowhere", plain, Port=1, ProxyJump="lost-bastion")
    with pytest.raises(Unreachable, match=r"lost-bastion does not reach 127\.0\.0\.1 port 1"):
        open_on("nowhere", "true")


def test_a_proxy_command_carries_the_line(home, plain, said):
    bastion = home.add("command-bastion")
    home.alias("by-command", plain, ProxyCommand=f"ssh -F {home.config} -W %h:%p {bastion.name}")
    assert said("by-command", "echo", "in") == "in\n"
    assert "Accepted publickey" in bastion.log


def test_a_port_where_nobody_listens_is_unreachable(home, plain, open_on):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(Unreachable, match="refused"):
        open_on("plain", "true", port=port)


def test_a_name_that_nobody_knows_is_unreachable(home, open_on):
    with pytest.raises(Unreachable, match=r"no-such-host\.invalid"):
        open_on("no-such-host.invalid", "true")


# Limits


def test_a_server_that_turns_connections_away_is_asked_again(home, tmp_path):
    server = home.add("crowded", config=["MaxStartups 10:30:100"])
    barrier = threading.Barrier(40)

    def log_in(_):
        transports = Transports(tmp_path)
        transport = transports.to(Node(name="node", host="crowded"))
        barrier.wait()
        process = transport.open(["echo", "in"])
        printed = process.read(3)
        transports.close()
        return printed

    with ThreadPoolExecutor(40) as pool:
        assert list(pool.map(log_in, range(40))) == [b"in\n"] * 40
    assert "MaxStartups" in server.log, "the server turned nobody away"


def test_a_server_with_one_session_a_line_gets_more_lines(home, open_on):
    server = home.add("narrow", config=["MaxSessions 1"])
    started = [open_on("narrow", "cat") for _ in range(3)]
    for number, process in enumerate(started):
        process.write(b"%d" % number)
        assert process.read(1) == b"%d" % number
    assert server.log.count("Accepted publickey") == 3
    for process in started:
        process.kill()


@pytest.mark.parametrize("direction", ["down", "up"])
def test_new_keys_in_the_middle_of_a_stream_change_nothing(home, open_on, tmp_path, direction):
    server = home.add(f"rekeys-{direction}", config=["RekeyLimit 1M", "LogLevel DEBUG1"])
    data = os.urandom(2**24)
    (tmp_path / "data").write_bytes(data)
    if direction == "down":
        process = open_on(server.name, "cat", str(tmp_path / "data"))
        assert process.read(len(data)) == data
    else:
        process = open_on(server.name, "sha256sum")
        process.write(data)
        process.close_stdin()
        assert process.read(64).decode() == hashlib.sha256(data).hexdigest()
    assert process.wait() == 0
    assert server.log.count("SSH2_MSG_NEWKEYS received") > 3


# Lines that fail


def end_of(process):
    """When its stdout ended, for whoever waits: the seconds it took."""
    before = time.monotonic()
    with contextlib.suppress(OSError):
        process.read(1)
    return time.monotonic() - before


def test_a_line_that_is_dead_is_noticed(fragile_bed, at_home, open_on):
    at_home(fragile_bed)
    server = fragile_bed.add("dies")
    process = open_on("dies", "cat")
    process.write(b"x")
    assert process.read(1) == b"x"
    fragile_bed.cut(server)
    assert end_of(process) < 20


def test_a_line_where_only_the_server_is_silent_is_dead_too(relayed_bed, at_home, open_on):
    """Its host answers TCP, so that only the missing answers of sshd tell."""
    at_home(relayed_bed)
    server = relayed_bed.add("hangs")
    relayed_bed.alias("soon", server, ServerAliveInterval=1, ServerAliveCountMax=2)
    process = open_on("soon", "cat")
    relayed_bed.cut(server)
    assert end_of(process) < 10


def test_a_line_that_is_quiet_is_not_dead(home, plain, open_on):
    home.alias("quiet", plain, ServerAliveInterval=1, ServerAliveCountMax=1)
    process = open_on("quiet", "sh", "-c", "sleep 4; echo still here")
    assert process.read(11) == b"still here\n"


def test_a_line_that_broke_is_made_anew_for_the_next_command(home, open_on, said):
    server = home.add("restarts")
    process = open_on("restarts", "cat")
    server.drop_sessions()
    assert end_of(process) < 10
    assert said("restarts", "echo", "again") == "again\n"


def test_what_a_reset_line_carried_ends_with_an_error(relayed_bed, at_home, open_on):
    at_home(relayed_bed)
    server = relayed_bed.add("reset")
    process = open_on("reset", "sh", "-c", "sleep 60")
    relayed_bed.relay(server).reset()
    assert end_of(process) < 10
    assert process.wait() != 0


def test_many_dead_hosts_cost_one_timeout(tmp_path, fragile_bed, at_home):
    at_home(fragile_bed)
    servers = fragile_bed.add_all([f"far{number}" for number in range(10)])
    for server in servers:
        fragile_bed.alias(f"gone-{server.name}", server, ConnectTimeout=2)
        fragile_bed.cut(server)
    transports = Transports(tmp_path)

    def fail(server):
        with pytest.raises(Unreachable):
            transports.to(Node(name="node", host=f"gone-{server.name}")).open(["true"])

    before = time.monotonic()
    with ThreadPoolExecutor(len(servers)) as pool:
        list(pool.map(fail, servers))
    assert time.monotonic() - before < 15
    transports.close()
