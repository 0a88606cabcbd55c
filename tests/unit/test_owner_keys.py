"""Keys that an owner is given, and the one line of authorized_keys: what is taken, what is refused, what stays."""

import base64
import json
import os
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedctl.node.agent import Ledger
from fedctl.node.owner import publickey
from fedctl.node.owner.cli import main
from fedctl.node.owner.errors import OwnerError
from tests.bed.keys import fingerprint, make_key, public, sign

OLDEST = next(iter(sorted(Path.home().glob(".pyenv/versions/3.8.*/bin/python"))), Path(sys.executable))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def key(folder) -> Path:
    return make_key(folder / "coordinator")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An owner's home of the test's own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("FEDCTL_HOME", "FEDCTL_NODE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def authorized(home) -> Path:
    (home / ".ssh").mkdir()
    return home / ".ssh" / "authorized_keys"


def enroll(key: Path, *more: str) -> int:
    return main(["enroll", "--key", f"{key}.pub", "--python", sys.executable, *more])


# Public keys


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_every_kind_of_key_is_read_and_has_the_fingerprint_that_openssh_shows(folder, kind):
    path = make_key(folder / kind, kind)
    key = publickey.read(Path(f"{path}.pub"))
    assert str(key) == public(path)
    assert key.fingerprint == fingerprint(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "0 lines"),
        ("{key}\n{key}\n", "2 lines"),
        ('command="id" {key}', "options before its key"),
        ("no-pty {key}", "options before its key"),
        ("ssh-dss AAAAB3NzaC1kc3MAAACBAP", "no public key that sshd takes"),
        ("ssh-ed25519 AAAA", "damaged"),
        ("ssh-rsa {blob}", "damaged"),
        ("ssh-ed25519 not*base64", "damaged"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl", "private key"),
        ("PuTTY-User-Key-File-3: ssh-ed25519\n", "private key"),
        ("\0\xff", "no public key"),
    ],
)
def test_what_is_no_public_key_is_refused_by_what_it_is(tmp_path, key, text, why):
    line = public(key)
    (tmp_path / "given").write_text(text.format(key=line, blob=line.split()[1]))
    with pytest.raises(OwnerError, match=why):
        publickey.read(tmp_path / "given")


def test_a_private_key_and_a_certificate_are_refused(folder, key):
    with pytest.raises(OwnerError, match="must never leave"):
        publickey.read(key)
    authority = make_key(folder / "authority")
    with pytest.raises(OwnerError, match="is a certificate"):
        publickey.read(sign(make_key(folder / "signed"), authority, "me"))


def test_a_comment_cannot_reach_the_file_as_anything_else(tmp_path, key):
    (tmp_path / "given").write_text(f"{public(key)} me\x1b[31m\x07 and{'x' * 500}")
    comment = publickey.read(tmp_path / "given").comment
    assert comment.isprintable()
    assert len(comment) <= 100


# authorized_keys


@given(
    st.lists(
        st.sampled_from(['from="a b"', 'command="say \\"hi\\" to, all"', "no-pty", "restrict", 'environment="A=b c"'])
    )
)
def test_options_are_read_whole(options):
    blob = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\1x").decode()
    written = ",".join(options)
    (line,) = publickey.lines_of(f"# no key\n\n{written} ssh-ed25519 {blob} a comment")
    assert (line.number, line.options, line.key) == (3, written, blob)
    found = publickey.command_of(written)
    assert found == ('say "hi" to, all' if any("command" in option for option in options) else None)


@given(st.binary(max_size=300))
def test_no_file_is_too_strange_to_be_looked_through(content):
    publickey.lines_of(content.decode("utf-8", "surrogateescape"))


@pytest.mark.parametrize("command", ['a"b', "a\\b", "a\nb", "a\0b"])
def test_a_command_that_would_end_its_quotes_is_refused(command, key):
    with pytest.raises(OwnerError, match="cannot stand"):
        publickey.line_for(publickey.read(Path(f"{key}.pub")), command)


# Enrolling


def test_other_lines_stay_to_the_byte_and_ours_is_written_once(home, authorized, folder, key):
    others = f"# mine\r\n\xff\u2028 {public(make_key(folder / 'other'))} me".encode("latin-1", "replace") + b" \xfe"
    authorized.write_bytes(others)
    for _ in range(2):
        assert enroll(key) == 0
    first, second, *rest = authorized.read_bytes().split(b"\n")
    assert first + b"\n" + second == others
    assert len(rest) == 2
    assert rest[0].startswith(b'restrict,command="')
    assert public(key).encode() in rest[0]
    assert stat.S_IMODE(authorized.stat().st_mode) == 0o600
    assert stat.S_IMODE(authorized.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("line", "gives"),
    [
        ("{key}", "a shell"),
        ("no-pty {key}", "a shell"),
        ('command="/bin/true" {key}', "`/bin/true`"),
        ('command="/x/program/serve.py" {key}', "serve.py"),
        ("cert-authority {key}", "a shell"),
    ],
)
@pytest.mark.parametrize("name", ["authorized_keys", "authorized_keys2"])
def test_a_line_that_gives_the_key_more_is_named_and_nothing_is_written(
    home, authorized, key, capsys, line, gives, name
):
    file = authorized.with_name(name)
    file.write_text(f"# first\n{line.format(key=public(key))}\n")
    assert enroll(key) == 7
    said = capsys.readouterr().err
    assert f"{name}:2" in said
    assert gives in said
    assert not (home / ".fedctl-node").exists()


def test_a_line_of_ours_that_lost_its_restriction_is_not_taken_for_ours(home, authorized, key, capsys):
    assert enroll(key) == 0
    authorized.write_text(authorized.read_text().replace("restrict,", ""))
    assert enroll(key) == 7
    assert "authorized_keys:1" in capsys.readouterr().err


def test_a_link_stays_a_link(home, authorized, key):
    (home / "elsewhere").write_text("")
    authorized.symlink_to(home / "elsewhere")
    assert enroll(key) == 0
    assert authorized.is_symlink()
    assert public(key) in (home / "elsewhere").read_text()


def test_a_policy_with_mistakes_is_refused_before_anything_is_written(home, key, tmp_path, capsys):
    (tmp_path / "policy.yaml").write_text("code: approve\nround: 3\n")
    assert enroll(key, "--policy", str(tmp_path / "policy.yaml")) == 3
    assert "policy.yaml:2: round: unknown key; did you mean `rounds`?" in capsys.readouterr().err
    assert not (home / ".ssh").exists()
    assert not (home / ".fedctl-node").exists()


def test_a_dry_run_writes_nothing(home, key, capsys):
    assert enroll(key, "--dry-run") == 0
    assert 'restrict,command="' in capsys.readouterr().out
    assert not list(home.iterdir())


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_whatever_the_umask_all_of_it_is_the_owners_alone(home, key, umask):
    before = os.umask(umask)
    try:
        assert enroll(key) == 0
    finally:
        os.umask(before)
    for path in [home / ".fedctl-node", *(home / ".fedctl-node").rglob("*"), home / ".ssh", *(home / ".ssh").iterdir()]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_the_identity_stays_and_is_openssh_s(home, key):
    assert enroll(key) == 0
    file = home / ".fedctl-node" / "identity"
    before = file.read_bytes()
    assert enroll(key) == 0
    assert file.read_bytes() == before
    assert public(file).startswith("ssh-ed25519 ")


def test_revoking_takes_our_line_alone_and_keeps_the_ledger(home, authorized, folder, key, capsys):
    authorized.write_text(f"{public(make_key(folder / 'another'))} me\n")
    assert enroll(key) == 0
    ledger = home / ".fedctl-node" / "ledger.jsonl"
    ledger.write_text("")
    assert main(["revoke"]) == 0
    assert authorized.read_text() == f"{public(folder / 'another')} me\n"
    assert ledger.exists()
    assert main(["revoke"]) == 7
    assert "0 keys are enrolled" in capsys.readouterr().err
    assert main(["show"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("No key is enrolled: ")
    assert "\nidentity   SHA256:" in shown
    assert "\nledger     0 entries\n" in shown


def test_where_nobody_is_enrolled_the_ledger_is_that_of_the_agent(home, key, capsys):
    (home / ".fedctl").mkdir()
    Ledger(home / ".fedctl" / "ledger.jsonl").append({"kind": "log", "size": 5})
    assert main(["ledger"]) == 0
    assert "1 entries: log 5 bytes" in capsys.readouterr().out
    assert enroll(key) == 0
    assert main(["ledger"]) == 0
    assert "0 entries" in capsys.readouterr().out, "nothing has left by the key"
    Ledger(home / ".fedctl-node" / "ledger.jsonl").append({"kind": "log", "size": 7})
    assert main(["ledger"]) == 0
    said = capsys.readouterr().out
    assert "1 entries: log 7 bytes" in said
    assert f"{home / '.fedctl'} has another, of what left by logins that nobody guards" in said
    assert main(["ledger", "--unguarded"]) == 0
    assert "1 entries: log 5 bytes" in capsys.readouterr().out


def test_of_several_keys_one_is_named(home, folder, key, capsys):
    second = make_key(folder / "second")
    assert enroll(key) == 0
    assert enroll(second) == 0
    assert main(["revoke"]) == 7
    assert "2 keys are enrolled" in capsys.readouterr().err
    assert main(["revoke", "--key", fingerprint(second)]) == 0
    assert main(["revoke", "--key", f"{second}.pub"]) == 7
    assert main(["show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
    assert [one["fingerprint"] for one in shown["keys"]] == [fingerprint(key)]


# Pins


def test_a_peer_is_pinned_and_taken_back(home, key, capsys):
    pin = fingerprint(key)
    assert main(["trust", "alice", pin]) == 0
    assert (home / ".fedctl-node" / "peers").read_text() == f"alice {pin}\n"
    assert main(["trust", "alice", "SHA256:short"]) == 2
    assert main(["trust", "../x", pin]) == 2
    assert main(["trust", "alice", pin]) == 0, "it is that one"
    assert main(["trust", "alice", f"SHA256:{'x' * 43}"]) == 7
    said = capsys.readouterr().err
    assert f"error: alice is pinned already, to {pin}" in said
    assert "hint: if its owner says that it has a new one, `fedctl node distrust alice` first" in said
    assert main(["distrust", "alice"]) == 0
    assert main(["distrust", "alice"]) == 7
    assert (home / ".fedctl-node" / "peers").read_text() == ""


def test_a_node_is_no_peer_of_itself(home, key, capsys):
    assert enroll(key) == 0
    assert main(["trust", "bob", fingerprint(home / ".fedctl-node" / "identity")]) == 7
    assert "that is the fingerprint of this node itself" in capsys.readouterr().err


# Elsewhere


def test_the_one_file_runs_where_fedctl_is_not_installed(home, key, tmp_path):
    """By the oldest Python that there is here, without what is installed."""
    assert main(["export", str(tmp_path / "a.pyz")]) == 0
    assert main(["export", str(tmp_path / "b.pyz")]) == 0
    assert (tmp_path / "a.pyz").read_bytes() == (tmp_path / "b.pyz").read_bytes()
    names = zipfile.ZipFile(tmp_path / "a.pyz").namelist()
    assert {name.split("/")[-1] for name in names if "owner" not in name} == {
        *("__main__.py", "__init__.py", "agent.py", "environment.py", "known.json")
    }
    words = [OLDEST, "-I", "-S", tmp_path / "a.pyz", "enroll", "--key", f"{key}.pub"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    command = re.search('command="([^"]*)"', (home / ".ssh" / "authorized_keys").read_text())[1]
    asked = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        env={"SSH_ORIGINAL_COMMAND": "agent-0123456789ab"},
        stdin=subprocess.DEVNULL,
    )
    assert (asked.returncode, asked.stdout) == (0, b"\0fedctl agent 1\n")


def test_what_cannot_be_is_an_error_of_the_command_line(home, capsys):
    for words, hint in (
        (["enrol"], "did you mean `fedctl node enroll`?"),
        (["shwo", "--json"], "did you mean `fedctl node show`?"),
        (["zzz"], "`fedctl node --help` says what there is"),
        (["trust", "bob"], "`fedctl node trust --help` says what there is"),
    ):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2
        assert capsys.readouterr().err.endswith(f"\nhint: {hint}\n")
    assert main(["approve"]) == 7
    assert "nothing waits for you" in capsys.readouterr().err
