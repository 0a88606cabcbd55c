"""The bed itself: what tests over SSH take for granted."""

import socket
import threading
import time
from contextlib import suppress

import pytest

from tests.bed import LoopbackBed, NamespaceBed, keys, processes, why_not
from tests.bed.relay import Relay

KINDS = {"loopback": LoopbackBed, "relayed": lambda folder: LoopbackBed(folder, relayed=True)}
if why_not() is None:
    KINDS["namespaces"] = NamespaceBed
BREAKABLE = [kind for kind in KINDS if kind != "loopback"]


@pytest.fixture(params=BREAKABLE)
def breakable_bed(request, tmp_path):
    with KINDS[request.param](tmp_path / "bed") as bed:
        yield bed


@pytest.fixture(params=KINDS)
def any_bed(request, tmp_path):
    with KINDS[request.param](tmp_path / "bed") as bed:
        yield bed


def said(bed, name, *command, **settings):
    """What a command says over the real `ssh`."""
    done = bed.ssh(name, *command, **settings)
    assert done.returncode == 0, f"{done.stderr}\n{bed.nodes[name].log if name in bed.nodes else ''}"
    return done.stdout


def test_each_node_is_reached_by_name_and_has_a_home_of_its_own(any_bed):
    any_bed.add_all(["one", "two"])
    for name in ("one", "two"):
        home = any_bed.nodes[name].home
        assert said(any_bed, name, "echo $HOME $FEDCTL_HOME") == f"{home} {home}/.fedctl\n"
        assert "Accepted publickey" in any_bed.nodes[name].log


def test_what_bashrc_prints_comes_first(any_bed):
    any_bed.add("noisy", noise="echo welcome\necho careful >&2\n")
    done = any_bed.ssh("noisy", "echo done")
    assert (done.stdout, done.stderr) == ("welcome\ndone\n", "careful\n")


def test_lines_of_sshd_config_win_over_the_beds_own(any_bed):
    server = any_bed.add("strict", config=["ForceCommand echo forced"])
    assert said(any_bed, "strict", "echo mine") == "forced\n"
    server.configure("PubkeyAuthentication no")
    server.restart_server()
    assert "Permission denied" in any_bed.ssh("strict", "true").stderr


def test_a_line_that_is_cut_is_silent_until_it_is_healed(breakable_bed):
    server = breakable_bed.add("far")
    done = []
    talk = "for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done"
    thread = threading.Thread(target=lambda: done.append(said(breakable_bed, "far", talk)))
    thread.start()
    processes.wait_until(server.started, "no session")
    breakable_bed.cut(server)
    thread.join(1)
    assert not done
    with pytest.raises(TimeoutError), socket.create_connection((server.address, server.port), timeout=0.5) as line:
        line.recv(1)
    breakable_bed.heal(server)
    thread.join(30)
    assert done == ["1\n2\n3\n4\n5\n6\n"]


def test_a_slow_line_takes_its_time(breakable_bed):
    server = breakable_bed.add("slow")
    breakable_bed.slow(server, 2e6)
    before = time.monotonic()
    assert len(said(breakable_bed, "slow", "head -c 2000000 /dev/zero | tr '\\0' x")) == 2_000_000
    assert time.monotonic() - before > 0.7


def test_a_job_outlives_its_connection_and_its_server_but_no_reboot(any_bed):
    server = any_bed.add("node")
    said(any_bed, "node", "setsid sleep 600 </dev/null >/dev/null 2>&1 & echo started")
    processes.wait_until(server.started, "no job")
    (job,) = server.started()
    server.restart_server()
    assert said(any_bed, "node", "echo back") == "back\n"
    assert server.started() == [job]
    server.reboot()
    assert server.started() == []
    assert said(any_bed, "node", "echo back") == "back\n"


def test_dropped_sessions_end_while_the_server_goes_on(any_bed):
    server = any_bed.add("node")
    done = []
    thread = threading.Thread(target=lambda: done.append(any_bed.ssh("node", "sleep 600")))
    thread.start()
    processes.wait_until(server.started, "no session")
    server.drop_sessions()
    thread.join(20)
    assert done[0].returncode == 255
    assert said(any_bed, "node", "echo back") == "back\n"


def test_nothing_is_left_of_a_bed_that_is_closed(any_bed):
    servers = any_bed.add_all(["one", "two"])
    for server in servers:
        said(any_bed, server.name, "setsid sleep 600 </dev/null >/dev/null 2>&1 & echo started")
        processes.wait_until(server.started, "no job")
    any_bed.close()
    for server in servers:
        assert server.processes() == []


def test_a_server_that_does_not_start_shows_its_log(tmp_path):
    with LoopbackBed(tmp_path / "bed") as bed, pytest.raises(RuntimeError, match="Bad configuration option: Nonsense"):
        bed.add("broken", config=["Nonsense yes"])


# Keys


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_key_of_each_kind_opens_and_each_kind_of_host_key_is_known(bed, kind, tmp_path):
    key = keys.make_key(tmp_path / "key", kind)
    bed.admit(key)
    server = bed.add(f"keys-{kind}", host_keys=[kind])
    assert said(bed, bed.alias(f"with-{kind}", server, IdentityFile=key), "echo in") == "in\n"
    assert keys.fingerprint(key).startswith("SHA256:")


def test_a_certificate_opens_where_its_authority_is_trusted(bed, tmp_path):
    authority, key = keys.make_key(tmp_path / "authority"), keys.make_key(tmp_path / "key")
    server = bed.add("certified", config=["AuthorizedKeysFile none", f"TrustedUserCAKeys {authority}.pub"])
    bed.alias("as-certified", server, IdentityFile=key)
    assert "Permission denied" in bed.ssh("as-certified", "true").stderr
    keys.sign(key, authority, server.user)
    assert said(bed, "as-certified", "echo in") == "in\n"


def test_an_agent_holds_keys_that_are_encrypted_on_disk(bed, tmp_path):
    key = keys.make_key(tmp_path / "key", passphrase="secret")
    bed.admit(key)
    server = bed.add("agent")
    bed.alias("by-key", server, IdentityFile=key)
    assert "Permission denied" in bed.ssh("by-key", "true").stderr
    opened = keys.make_key(tmp_path / "opened")
    bed.admit(opened)
    with keys.agent(tmp_path / "socket", opened) as environment:
        bed.alias("by-agent", server, IdentityFile=f"{opened}.pub", IdentityAgent=environment["SSH_AUTH_SOCK"])
        opened.unlink()
        assert said(bed, "by-agent", "echo in") == "in\n"
    assert not processes.marked(f"SSH_AUTH_SOCK={environment['SSH_AUTH_SOCK']}")


# The relay


@pytest.fixture
def echo():
    """A server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    line, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=send_back, args=(line,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)


def send_back(line):
    with line:
        try:
            while data := line.recv(2**16):
                line.sendall(data)
        except OSError:
            return


@pytest.fixture
def relay(echo):
    relay = Relay(*echo)
    yield relay
    relay.close()


@pytest.fixture
def line(relay):
    with socket.create_connection(("127.0.0.1", relay.port), timeout=20) as line:
        yield line


def exchange(line, data):
    """Send it and receive as much; the seconds that took."""
    before = time.monotonic()
    writer = threading.Thread(target=line.sendall, args=(data,), daemon=True)
    writer.start()
    assert receive(line, len(data)) == data
    writer.join()
    return time.monotonic() - before


def receive(line, size):
    data = bytearray()
    while len(data) < size and (piece := line.recv(2**18)):
        data += piece
    return bytes(data)


def received_until_the_end(line):
    """What came before the other end closed, which TCP calls a reset where that end had not read everything."""
    data = bytearray()
    with suppress(ConnectionResetError):
        while piece := line.recv(2**18):
            data += piece
    return bytes(data)


def test_a_delay_is_paid_once_a_round_trip_and_not_for_every_byte(relay, line):
    assert exchange(line, b"x") < 0.1
    relay.shape(delay=0.1)
    assert 0.2 <= exchange(line, b"x") < 0.5
    assert 0.2 <= exchange(line, bytes(2**24)) < 1.5


def test_a_rate_holds_for_each_direction(relay, line):
    relay.shape(rate=4e6)
    assert 0.45 <= exchange(line, bytes(2_000_000)) < 1.5


def test_a_cut_holds_back_what_is_sent_and_heal_lets_it_pass(relay, line):
    relay.cut()
    line.sendall(b"hello")
    line.settimeout(0.3)
    with pytest.raises(TimeoutError):
        line.recv(1)
    relay.heal()
    line.settimeout(20)
    assert receive(line, 5) == b"hello"


def test_a_reset_breaks_connections_and_new_ones_work(relay, line):
    exchange(line, b"x")
    relay.reset()
    with pytest.raises(ConnectionResetError):
        line.recv(1)
    with socket.create_connection(("127.0.0.1", relay.port)) as again:
        exchange(again, b"y")
    assert relay.connections() == 2


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_cut_after_some_bytes_comes_after_exactly_those(relay, line, direction):
    exchange(line, b"before")
    relay.cut_after(100_000, direction)
    carried = relay.carried(direction)
    line.sendall(bytes(300_000))
    received = received_until_the_end(line)
    assert relay.carried(direction) - carried == 100_000
    assert len(received) <= 100_000 if direction == "up" else len(received) == 100_000
    with socket.create_connection(("127.0.0.1", relay.port)) as again:
        exchange(again, bytes(300_000))


def test_the_end_of_one_direction_passes_and_leaves_the_other_open(relay, line):
    line.sendall(b"all")
    line.shutdown(socket.SHUT_WR)
    assert receive(line, 10) == b"all"
