"""Logging in over the transport `ssh`: host keys that are checked, and the users' keys that real servers take."""

import os
import subprocess
import sys
import termios

import pytest

from fedctl.errors import ConfigError, HostKeyError, LoginError
from tests.bed import keys, processes

KINDS = ["ed25519", "ecdsa", "rsa"]

# Host keys


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_host_key_is_checked(home, said, kind):
    home.add(f"host-{kind}", host_keys=[kind])
    assert said(f"host-{kind}", "echo", "in") == "in\n"


@pytest.mark.parametrize("known", KINDS)
def test_of_several_host_keys_the_one_that_is_known_is_asked_for(home, said, tmp_path, known):
    server = home.add(f"several-{known}", host_keys=KINDS)
    lines = server.known_hosts().splitlines(keepends=True)
    (tmp_path / "few").write_text(lines[KINDS.index(known)])
    home.alias(f"only-{known}", server, UserKnownHostsFile=tmp_path / "few")
    assert said(f"only-{known}", "echo", "in") == "in\n"


def test_an_unknown_host_key_is_refused_with_its_fingerprint(home, plain, open_on, tmp_path):
    home.alias("stranger", plain, UserKnownHostsFile=tmp_path / "nobody", GlobalKnownHostsFile=tmp_path / "nobody")
    with pytest.raises(HostKeyError) as error:
        open_on("stranger", "true")
    assert keys.fingerprint(plain.host_keys[0]) in str(error.value)
    assert "fedctl check --accept-new" in error.value.hint
    assert not (tmp_path / "nobody").exists()


def test_a_changed_host_key_is_refused_with_the_line_that_disagrees(home, plain, open_on, tmp_path):
    other = keys.make_key(tmp_path / "other")
    (tmp_path / "old").write_text(f"# a comment\n[127.0.0.1]:{plain.port} {keys.public(other)}\n")
    home.alias("impostor", plain, UserKnownHostsFile=tmp_path / "old", GlobalKnownHostsFile=tmp_path / "nobody")
    accepted = plain.log.count("Accepted")
    with pytest.raises(HostKeyError) as error:
        open_on("impostor", "true")
    shown = f"{error.value.message} {error.value.hint}"
    assert keys.fingerprint(plain.host_keys[0]) in shown
    assert f"{tmp_path / 'old'}" in shown
    assert "2" in shown.partition("old")[2]
    assert plain.log.count("Accepted") == accepted


# Who is let in


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_key_logs_in(home, plain, said, tmp_path, kind):
    key = keys.make_key(tmp_path / "key", kind)
    home.admit(key)
    home.alias(f"as-{kind}", plain, IdentityFile=key)
    assert said(f"as-{kind}", "echo", "in") == "in\n"


def test_a_certificate_beside_the_key_logs_in(home, open_on, said, tmp_path):
    authority, key = keys.make_key(tmp_path / "authority"), keys.make_key(tmp_path / "key")
    server = home.add("takes-certificates", config=["AuthorizedKeysFile none", f"TrustedUserCAKeys {authority}.pub"])
    home.alias("certificate", server, IdentityFile=key)
    with pytest.raises(LoginError):
        open_on("certificate", "true")
    keys.sign(key, authority, server.user)
    assert said("certificate", "echo", "in") == "in\n"


def test_the_agents_key_logs_in_where_no_file_does(home, plain, said, tmp_path, monkeypatch):
    key = keys.make_key(tmp_path / "key")
    home.admit(key)
    home.alias("agent-only", plain, IdentityFile=tmp_path / "none", IdentitiesOnly=None)
    with keys.agent(tmp_path / "socket", key) as environment:
        monkeypatch.setenv("SSH_AUTH_SOCK", environment["SSH_AUTH_SOCK"])
        assert said("agent-only", "echo", "in") == "in\n"


def test_an_agents_certificate_logs_in(home, said, tmp_path, monkeypatch):
    authority, key = keys.make_key(tmp_path / "authority"), keys.make_key(tmp_path / "key")
    server = home.add("agent-certified", config=["AuthorizedKeysFile none", f"TrustedUserCAKeys {authority}.pub"])
    keys.sign(key, authority, server.user)
    home.alias("agent-certificate", server, IdentityFile=tmp_path / "none", IdentitiesOnly=None)
    with keys.agent(tmp_path / "socket", key) as environment:
        monkeypatch.setenv("SSH_AUTH_SOCK", environment["SSH_AUTH_SOCK"])
        assert said("agent-certificate", "echo", "in") == "in\n"


LOG_IN = """
import fcntl, sys, termios
from pathlib import Path
if sys.stdin.isatty():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # the terminal of this session of its own
from fedctl.errors import LoginError
from fedctl.federation import Node
from fedctl.transports import Transports
transports = Transports(Path("."))
for _ in range(2):
    try:
        process = transports.to(Node(name="node", host=sys.argv[1])).open(["echo", "in"])
        print(process.read(3).decode(), end="", flush=True)
    except LoginError as error:
        print(error.message, error.hint, flush=True)
transports.close()
"""


@pytest.fixture
def locked_key(home, plain, tmp_path):
    key = keys.make_key(tmp_path / "key", passphrase="open sesame")
    home.admit(key)
    return home.alias("locked", plain, IdentityFile=key)


def test_without_a_terminal_a_locked_key_is_an_error_that_says_what_to_do(home, locked_key):
    done = subprocess.run(
        [sys.executable, "-c", LOG_IN, locked_key],
        env={**os.environ, **home.environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=60,
    )
    assert done.stdout.count("locked by a passphrase `ssh-add ") == 2, done.stderr


def test_a_passphrase_is_asked_for_once_on_the_terminal(home, locked_key):
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", LOG_IN, locked_key],
        env={**os.environ, **home.environment},
        stdin=theirs,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        asked = os.read(ours, 1000)
        processes.wait_until(lambda: not termios.tcgetattr(theirs)[3] & termios.ECHO, "what is typed would be seen")
        os.write(ours, b"open sesame\n")
        printed, _ = child.communicate(timeout=60)
    os.close(theirs)
    os.close(ours)
    assert b"passphrase of" in asked
    assert printed == "in\nin\n"


def test_a_server_that_wants_a_password_says_so(home, open_on):
    home.add("passwords", config=["PubkeyAuthentication no", "PasswordAuthentication yes"])
    with pytest.raises(LoginError, match="takes password, and no keys"):
        open_on("passwords", "true")


def test_a_server_that_lets_no_root_in_says_so(home, open_on):
    server = home.add("no-root", config=["PermitRootLogin no"])
    with pytest.raises(LoginError) as error:
        open_on("no-root", "true", user="root")
    assert "PermitRootLogin no" in error.value.hint
    assert "root" in server.log


def test_a_key_that_is_refused_is_named(home, plain, open_on, tmp_path):
    key = keys.make_key(tmp_path / "stranger")
    with pytest.raises(LoginError, match=f"refused .*{key}"):
        open_on("plain", "true", key=str(key))


def test_a_key_that_has_not_been_made_yet_is_an_error_before_anything_is_sent(home, plain, open_on, tmp_path):
    with pytest.raises(ConfigError, match=r"key: there is no .*/none"):
        open_on("plain", "true", key=str(tmp_path / "none"))
