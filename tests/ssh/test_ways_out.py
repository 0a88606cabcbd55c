"""An enrolled key has one way to the node, the agent's: every other that sshd knows is tried here, against a real one.

The server allows all that a key's line can forbid: it is the line that forbids it. Tunnels are the exception: no
line forbids them, only sshd's own PermitTunnel, which is off unless somebody turns it on.
"""

import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fedctl import remote
from fedctl.connection import Connection
from fedctl.federation import Node
from fedctl.transports import Transports
from tests.bed import keys
from tests.bed.processes import wait_until
from tests.bed.server import program
from tests.ssh.owner import Owner, bring_up

ALL_ALLOWED = (
    "AllowTcpForwarding yes",
    "AllowAgentForwarding yes",
    "AllowStreamLocalForwarding yes",
    "X11Forwarding yes",
    "PermitTTY yes",
    "PermitUserRC yes",
    "GatewayPorts yes",
    "AcceptEnv *",
    "LogLevel DEBUG1",
)
AGENT = "agent-0123456789ab"
"""What the command of a coordinator names; no more than that is looked at in it."""


@pytest.fixture(scope="module")
def hospital(bed) -> Owner:
    owner = bring_up(bed, "hospital", config=ALL_ALLOWED)
    owner.enroll(bed.key)
    return owner


@pytest.fixture
def listener():
    """A port on the node's side, and who called there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        called = []

        def accept():
            while True:
                try:
                    called.append(server.accept()[1])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1], called
        server.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def held(bed, hospital):
    """A line on which the agent has greeted, of `ssh` with these options."""
    lines = []

    def held(*options: str, environment=None, **settings: str) -> subprocess.Popen[bytes]:
        set_to = [f"-o{word}={value}" for word, value in settings.items()]
        words = [program("ssh"), "-F", str(bed.config), "-oBatchMode=yes", *set_to, *options, "hospital", AGENT]
        line = subprocess.Popen(
            words,
            env={**bed.environment, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        lines.append(line)
        assert line.stdout.read(1) == b"\0"
        return line

    yield held
    for line in lines:
        line.kill()
        line.communicate()


def served(hospital: Owner) -> list[dict[str, str]]:
    """The environments of the programs that serve lines now."""
    found = []
    for pid in hospital.server.started():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if any(word.endswith(b"/serve.py") for word in words) and b"-I" in words:
            lines = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
            found.append(dict(line.partition("=")[::2] for line in lines if line))
    return found


def test_the_line_grants_its_command_and_nothing_that_sshd_knows(bed, hospital):
    (line,) = hospital.authorized_keys.read_text().splitlines()
    assert line.startswith('restrict,command="')
    bed.ssh("hospital", "true")
    granted = [
        each.partition("key options:")[2].split() for each in hospital.server.log.splitlines() if "key options:" in each
    ]
    assert granted
    assert all(set(words) == {"command"} for words in granted), granted


@pytest.mark.parametrize(
    "words",
    [
        ("touch", "{mark}"),
        ("sh", "-c", f"'touch {{mark}}' {AGENT}"),
        (f"{AGENT}; touch {{mark}}",),
        (f"$(touch {{mark}}) {AGENT}",),
    ],
    ids=["any", "with the agent's name", "after it", "within it"],
)
def test_no_command_runs(bed, hospital, words):
    mark = hospital.server.home / "mark"
    done = bed.ssh("hospital", *(word.format(mark=mark) for word in words))
    assert not mark.exists()
    assert done.stdout in ("", "\0fedctl agent 1\n")


def test_what_is_asked_for_beside_the_agent_is_told_why_not(bed, hospital):
    for words in (("id",), ()):
        done = bed.ssh("hospital", *words)
        assert done.returncode == 1
        assert "this key may speak to fedctl's agent, and nothing else" in done.stderr
        assert done.stdout == ""


def test_there_is_no_terminal(bed, hospital):
    done = bed.ssh("hospital", AGENT, RequestTTY="force")
    assert "PTY allocation request failed" in done.stderr


def test_files_cannot_be_copied(bed, hospital, tmp_path):
    (tmp_path / "mine").write_text("mine")
    theirs = hospital.server.home / "theirs"
    theirs.write_text("theirs")
    common = ["-F", str(bed.config), "-oBatchMode=yes"]
    for words in (
        ["scp", *common, str(tmp_path / "mine"), f"hospital:{hospital.server.home}/copied"],
        ["scp", "-O", *common, str(tmp_path / "mine"), f"hospital:{hospital.server.home}/copied"],
        ["scp", *common, f"hospital:{theirs}", str(tmp_path / "copied")],
        ["scp", "-O", *common, f"hospital:{theirs}", str(tmp_path / "copied")],
        ["sftp", *common, f"hospital:{theirs}", str(tmp_path / "copied")],
        ["sftp", "-s", "/usr/lib/openssh/sftp-server", *common, f"hospital:{theirs}", str(tmp_path / "copied")],
    ):
        done = subprocess.run(
            [program(words[0]), *words[1:]],
            env=bed.environment,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=30,
        )
        assert done.returncode, words
        assert not (tmp_path / "copied").exists()
        assert not (hospital.server.home / "copied").exists()


def test_nothing_can_be_reached_through_the_node(bed, held, listener):
    port, called = listener
    local, dynamic = free_port(), free_port()
    held(f"-L{local}:127.0.0.1:{port}", f"-D{dynamic}", ExitOnForwardFailure="yes")
    with socket.create_connection(("127.0.0.1", local)) as line:
        assert line.recv(1) == b""
    with socket.create_connection(("127.0.0.1", dynamic)) as line:
        line.sendall(b"\5\1\0")
        line.recv(2)
        line.sendall(b"\5\1\0\1" + socket.inet_aton("127.0.0.1") + struct.pack(">H", port))
        assert line.recv(10)[1:2] != b"\0"
    words = [program("ssh"), "-F", str(bed.config), "-oBatchMode=yes", f"-W127.0.0.1:{port}", "hospital"]
    through = subprocess.run(words, env=bed.environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=30)
    assert through.returncode == 255
    assert not called


def test_no_port_of_the_node_leads_back(bed, hospital):
    port = free_port()
    done = bed.ssh("hospital", AGENT, RemoteForward=f"{port} 127.0.0.1:9", ExitOnForwardFailure="yes")
    assert done.returncode == 255
    assert "remote port forwarding failed" in done.stderr
    done = bed.ssh("hospital", AGENT, RemoteForward=f"/tmp/fedctl-{port} 127.0.0.1:9", ExitOnForwardFailure="yes")
    assert done.returncode == 255


def test_neither_a_display_nor_an_agent_comes_along(bed, hospital, held, tmp_path):
    with keys.agent(tmp_path / "agent", bed.key) as environment:
        held("-A", "-Y", environment={**environment, "DISPLAY": "127.0.0.1:7"})
        found = served(hospital)
        assert found
        assert not {"SSH_AUTH_SOCK", "DISPLAY", "SSH_TTY"} & {name for words in found for name in words}


@pytest.mark.parametrize("kind", ["point-to-point", "ethernet"])
def test_there_is_no_tunnel(bed, hospital, kind):
    options = {"Tunnel": kind, "TunnelDevice": "any:any", "ExitOnForwardFailure": "yes"}
    done = bed.ssh("hospital", AGENT, **options)
    assert done.returncode == 255, done
    assert "sys_tun_open" not in hospital.server.log


def test_variables_of_the_client_change_nothing(bed, hospital, at_home, tmp_path):
    """Also where an administrator lets all of them in: no home but the one of the enrolment, and no module."""
    (tmp_path / "sitecustomize.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "json.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    bed.alias(
        "hospital-env",
        hospital.server,
        SetEnv=f"FEDCTL_HOME={tmp_path}/elsewhere PYTHONPATH={tmp_path} FEDCTL_NODE_HOME={tmp_path}",
    )
    words = [program("ssh"), "-F", str(bed.config), "hospital-env", *remote.serve_agent("python3", "0" * 64)]
    done = subprocess.run(words, env=bed.environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=30)
    assert done.stdout == b"\0fedctl agent 1\n"
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "elsewhere").exists()


def test_a_home_that_is_asked_for_is_not_taken(bed, hospital, at_home, tmp_path):
    at_home(bed)
    transports = Transports(tmp_path)
    try:
        transport = transports.to(Node(name="node", host="hospital"))
        connection = Connection.open(transport, sys.executable, home=str(tmp_path / "elsewhere"))
        assert connection.facts["home"] == str(hospital.home)
        assert not (tmp_path / "elsewhere").exists()
        connection.close()
    finally:
        transports.close()


def test_a_key_that_is_revoked_is_out_at_once(bed, at_home, tmp_path):
    at_home(bed)
    owner = bring_up(bed, "clinic")
    owner.enroll(bed.key)
    transports = Transports(tmp_path)
    try:
        connection = Connection.open(transports.to(Node(name="node", host="clinic")), sys.executable)
        assert "1 of its processes were ended" in owner.node("revoke").stdout
        wait_until(lambda: connection.is_lost, "the line goes on")
    finally:
        transports.close()
    done = bed.ssh("clinic", AGENT)
    assert done.returncode == 255
    assert "Permission denied" in done.stderr
