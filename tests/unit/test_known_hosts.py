import base64
import multiprocessing
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedctl.errors import HostKeyError, StateError
from fedctl.transports.known_hosts import HostKey, accept, judge, known_types, names_of
from fedctl.transports.sshconfig import Endpoint


def endpoint(*files, address="bob.example.org", port=22, alias=None, least_rsa_bits=1024):
    return Endpoint(
        name="bob",
        address=address,
        port=port,
        user="fed",
        identity_files=(),
        is_identity_given=False,
        identities_only=False,
        certificate_files=(),
        agent=None,
        known_hosts=files,
        host_key_alias=alias,
        connect_timeout_s=10,
        alive_interval_s=5,
        alive_count=3,
        address_family="any",
        bind_address=None,
        proxy_command=None,
        jumps=(),
        ciphers=None,
        macs=None,
        kex=None,
        host_key_algorithms=None,
        key_algorithms=None,
        least_rsa_bits=least_rsa_bits,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of keys that `ssh-keygen` made."""
    folder = tmp_path_factory.mktemp("keys")
    for name, options in {
        "ed25519": ("-t", "ed25519"),
        "other": ("-t", "ed25519"),
        "ecdsa": ("-t", "ecdsa"),
        "rsa": ("-t", "rsa", "-b", "1024"),
    }.items():
        subprocess.run(["ssh-keygen", "-q", *options, "-N", "", "-C", "", "-f", folder / name], check=True)
    return folder


def key(made, name="ed25519"):
    type, text = (made / f"{name}.pub").read_text().split()[:2]
    return HostKey(type, base64.b64decode(text))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "known_hosts"


# What a key looks like


@pytest.mark.parametrize("name", ["ed25519", "ecdsa", "rsa"])
def test_a_fingerprint_is_what_ssh_keygen_prints(made, name):
    printed = subprocess.check_output(["ssh-keygen", "-lf", made / f"{name}.pub"], text=True)
    assert key(made, name).fingerprint == printed.split()[1]


def test_the_length_of_an_rsa_key_is_what_ssh_keygen_prints(made):
    assert key(made, "rsa").rsa_bits == 1024
    assert key(made).rsa_bits == 0
    assert HostKey("ssh-rsa", b"\0\0\0\7ssh-rsa\0\0\0\1").rsa_bits == 0


# Which lines are about whom

NAMES = (
    "bob",
    "bob.example.org",
    "eve.example.org",
    "a.b.example.org",
    "[bob]:2222",
    "[bob.example.org]:2222",
    "192.0.2.7",
    "::1",
    "fe80::1%eth0",
    "[::1]:22022",
    "x",
)
PATTERNS = (
    "bob",
    "BOB",
    "bob,192.0.2.7",
    "192.0.2.7,bob.example.org",
    "*.example.org",
    "*.example.org,!eve.example.org",
    "!eve.example.org,*",
    "!bob",
    "!bob,bob",
    "?ob",
    "??",
    "?",
    "*",
    "**",
    "192.0.2.?",
    "192.0.2.*,bob",
    "[bob]:2222",
    "[bob]:*",
    "[*]:2222",
    "[*.example.org]:2222,x",
    "[b]ob",
    "::1",
    "fe80::*",
    "[::1]:22022",
    "bob,",
    ",bob",
    "!",
    "|1|bad",
    "|2|AAAA|AAAA",
    "b.b",
    "bob$",
)


@pytest.fixture(scope="module")
def written(made, tmp_path_factory):
    """Files with the same lines, plain and hashed by `ssh-keygen -H`."""
    folder = tmp_path_factory.mktemp("written")
    lines = ["# a comment", "", *(key(made).line(pattern) for pattern in PATTERNS)]
    lines += [f"@revoked {key(made).line('bob')}", f"@cert-authority {key(made).line('*.example.org')}"]
    lines += [f"  {key(made).line('x')} a comment", key(made).line("bob").replace(" ", "\t") + "\r"]
    plain, hashed = folder / "plain", folder / "hashed"
    plain.write_text("\n".join(lines))
    hashed.write_text("\n".join(key(made).line(pattern) for pattern in NAMES) + "\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", hashed], check=True, stderr=subprocess.DEVNULL)
    assert hashed.read_text().count("|1|") == len(NAMES)
    return {"plain": plain, "hashed": hashed}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["plain", "hashed"])
def test_the_same_lines_are_found_as_by_ssh_keygen(written, kind, name, made):
    file = written[kind]
    said = subprocess.run(["ssh-keygen", "-F", name, "-f", file], capture_output=True, text=True)
    expected = {int(number) for number in re.findall(r"found: line (\d+)", said.stdout)}
    found = set()
    for number, line in enumerate(file.read_text().split("\n"), start=1):
        alone = file.with_name(f"line-{number}")
        alone.write_text(line.removeprefix("@revoked ").removeprefix("@cert-authority "))
        if known_types(endpoint(alone, alias=name)):
            found.add(number)
    assert found == expected
    assert found


# What a file is, and what it is not


@pytest.mark.parametrize(
    "damage",
    [
        b"bob.example.org",
        b"bob.example.org ssh-ed25519",
        b"bob.example.org ssh-ed25519 ????",
        b"bob.example.org ssh-ed25519 AAAA",
        b"bob.example.org 1024 35 123456789",
        b"@unheard bob.example.org ssh-ed25519 AAAA",
        b"@revoked",
        b"\xff\xfe\x00 \x80 \x81",
        b"|1|| ssh-ed25519 AAAA",
        b"\x0c",
        "bob.example.org ssh-ed25519 AAAA\u2028more".encode(),
    ],
)
def test_a_damaged_line_costs_no_other(made, file, damage):
    file.write_bytes(damage + b"\n" + key(made).line("bob.example.org").encode())
    judge(endpoint(file), key(made))
    with pytest.raises(HostKeyError, match=re.escape(f"{file}:2 has")):
        judge(endpoint(file), key(made, "other"))


def test_a_key_of_another_type_than_its_line_says_counts_for_nothing(made, file):
    file.write_text(key(made).line("bob.example.org").replace("ssh-ed25519", "ssh-rsa"))
    assert known_types(endpoint(file)) == ()


@given(st.binary() | st.text(alphabet="|1!*?,[]:@ \n\tabAB=#").map(str.encode))
def test_no_content_of_a_file_breaks_it(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("any") / "known_hosts"
    file.write_bytes(data)
    assert known_types(endpoint(file, address="ab")) == ()


def test_files_that_are_missing_or_no_files_make_nothing_known(tmp_path, made):
    files = (tmp_path / "none", tmp_path, tmp_path / "none" / "below", Path("/dev/null"))
    with pytest.raises(HostKeyError, match="is unknown"):
        judge(endpoint(*files), key(made))


def test_a_file_that_changes_is_read_anew(made, file):
    file.write_text("")
    assert known_types(endpoint(file)) == ()
    accept(file, "bob.example.org", key(made))
    assert known_types(endpoint(file)) == ("ssh-ed25519",)


# Under which name


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ({}, ("bob.example.org",)),
        ({"address": "BOB.Example.org"}, ("bob.example.org",)),
        ({"port": 2222}, ("[bob.example.org]:2222", "bob.example.org")),
        ({"address": "::1", "port": 2222}, ("[::1]:2222", "::1")),
        ({"alias": "Cluster", "port": 2222}, ("cluster",)),
    ],
)
def test_a_server_has_the_name_that_ssh_gives_it(where, names):
    assert names_of(endpoint(**where)) == names


def test_the_types_of_its_known_keys_come_in_the_order_of_the_files(tmp_path, made):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text(f"@revoked {key(made, 'rsa').line('*')}\n{key(made, 'ecdsa').line('bob.example.org')}\n")
    second.write_text("".join(key(made, name).line("*.example.org") + "\n" for name in ("ed25519", "ecdsa", "other")))
    assert known_types(endpoint(first, second)) == ("ecdsa-sha2-nistp256", "ssh-ed25519")


# Judging


def refusal(endpoint, key):
    with pytest.raises(HostKeyError) as caught:
        judge(endpoint, key)
    return caught.value


def test_a_known_key_is_taken_from_any_of_the_files(tmp_path, made):
    own, users = tmp_path / "own", tmp_path / "users"
    own.write_text(key(made, "other").line("bob.example.org"))
    users.write_text(key(made).line("bob.example.org"))
    judge(endpoint(own, users), key(made))
    judge(endpoint(own, users), key(made, "other"))


def test_an_unknown_key_is_shown_and_can_be_accepted(made, file):
    error = refusal(endpoint(file, port=2222), key(made))
    assert error.message == f"the host key of [bob.example.org]:2222 is unknown: ssh-ed25519 {key(made).fingerprint}"
    assert error.hint == "`fedctl check --accept-new` shows it and asks"
    assert error.offered.name == "[bob.example.org]:2222"
    assert error.offered.type == "ssh-ed25519"
    assert error.offered.fingerprint == key(made).fingerprint
    accept(file, error.offered.name, HostKey.of(error.offered))
    judge(endpoint(file, port=2222), key(made))


def test_a_changed_key_is_refused_with_the_line_that_disagrees_and_what_to_type(tmp_path, made):
    file = tmp_path / "with space"
    file.write_text(f"# mine\n{key(made, 'other').line('[bob.example.org]:2222')}\n")
    error = refusal(endpoint(file, port=2222), key(made))
    assert f"the server shows ssh-ed25519 {key(made).fingerprint}" in error.message
    assert f"{file}:2 has ssh-ed25519 {key(made, 'other').fingerprint}" in error.message
    assert error.offered is None
    typed = re.search(r"`(ssh-keygen -R .*?)`", error.hint)[1]
    assert "then `fedctl check --accept-new`" in error.hint
    subprocess.run(typed, shell=True, check=True, capture_output=True)
    assert file.read_text() == "# mine\n"
    assert refusal(endpoint(file, port=2222), key(made)).offered


def test_a_key_of_a_type_that_is_not_known_is_no_new_server(made, file):
    """Else whoever is in between had only to show a key of another type."""
    file.write_text(key(made, "ecdsa").line("bob.example.org"))
    error = refusal(endpoint(file), key(made))
    assert f"{file}:1 has ecdsa-sha2-nistp256" in error.message
    assert error.offered is None


def test_every_file_that_disagrees_is_named(tmp_path, made):
    files = tmp_path / "a", tmp_path / "b"
    for file in files:
        file.write_text(key(made, "other").line("bob.example.org"))
    error = refusal(endpoint(*files), key(made))
    for file in files:
        assert f"{file}:1" in error.message
        assert f"`ssh-keygen -R bob.example.org -f {file}`" in error.hint


def test_a_key_that_is_known_for_port_22_is_known_for_any_port(made, file):
    file.write_text(key(made).line("bob.example.org"))
    judge(endpoint(file, port=2222), key(made))
    assert refusal(endpoint(file, port=2222), key(made, "other")).offered, "another server may listen on another port"


def test_the_key_of_port_22_is_no_substitute_for_that_of_another_port(made, file):
    file.write_text(f"{key(made).line('bob.example.org')}\n{key(made, 'other').line('[bob.example.org]:2222')}\n")
    judge(endpoint(file, port=2222), key(made, "other"))
    error = refusal(endpoint(file, port=2222), key(made))
    assert f"{file}:2 has" in error.message
    assert error.offered is None


def test_a_revoked_key_is_refused_though_it_is_known(made, file):
    file.write_text(f"{key(made).line('bob.example.org')}\n@revoked {key(made).line('*')}\n")
    error = refusal(endpoint(file), key(made))
    assert error.message == (
        f"the host key of bob.example.org is revoked: ssh-ed25519 {key(made).fingerprint}, in {file}:2"
    )
    assert error.offered is None
    assert refusal(endpoint(file), key(made, "other")).offered is None


def test_an_authority_is_no_key_and_says_so(made, file):
    file.write_text(f"@cert-authority *.example.org {key(made).type} {key(made).base64}\n")
    error = refusal(endpoint(file), key(made))
    assert f"{file}:1 trusts certificates for it, which fedctl does not take from servers" in error.message
    assert "`fedctl check --accept-new`" in error.hint
    assert error.offered
    assert known_types(endpoint(file)) == ()


def test_an_rsa_key_may_be_too_short(made, file):
    file.write_text(key(made, "rsa").line("bob.example.org"))
    judge(endpoint(file), key(made, "rsa"))
    error = refusal(endpoint(file, least_rsa_bits=3072), key(made, "rsa"))
    assert error.message == "the host key of bob.example.org has 1024 bits, and RequiredRSASize asks for 3072"


# Accepting


def test_accepting_makes_the_file_and_its_folder_for_the_user_alone(tmp_path, made):
    file = tmp_path / "new" / "known_hosts"
    accept(file, "bob", key(made))
    assert file.read_text() == f"bob {key(made).type} {key(made).base64}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    said = subprocess.check_output(["ssh-keygen", "-F", "bob", "-l", "-f", file], text=True)
    assert key(made).fingerprint in said


def test_accepting_twice_adds_one_line(made, file):
    accept(file, "bob", key(made))
    accept(file, "bob", key(made))
    accept(file, "eve", key(made))
    assert file.read_text().count("\n") == 2


@pytest.mark.parametrize("before", ["# kept\n", "# kept", "damaged ?\n\n"])
def test_accepting_keeps_what_stands_there(made, file, before):
    file.write_text(before)
    accept(file, "bob", key(made))
    assert file.read_text() == before.rstrip("\n") + "\n" * max(1, before.count("\n")) + key(made).line("bob") + "\n"


def test_a_revoked_line_does_not_pass_for_an_accepted_one(made, file):
    file.write_text(f"@revoked {key(made).line('bob')}\n")
    accept(file, "bob", key(made))
    assert file.read_text().count("\n") == 2


def test_many_processes_may_accept_at_once(made, file):
    keys = [(file, f"node-{number % 10}", key(made)) for number in range(40)]
    with multiprocessing.get_context("fork").Pool(8) as pool:
        pool.starmap(accept, keys)
    assert sorted(file.read_text().splitlines()) == sorted({key(made).line(name) for _, name, _ in keys})


def test_a_file_that_cannot_be_written_is_named(tmp_path, made):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="file/known_hosts cannot be written"):
        accept(tmp_path / "file" / "known_hosts", "bob", key(made))
