import subprocess
from dataclasses import fields
from pathlib import Path

import paramiko
import pytest

from fedctl.errors import ConfigError
from fedctl.federation import Node
from fedctl.transports import sshoptions
from fedctl.transports.sshconfig import resolve

FOLDER = Path("/federation")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home


@pytest.fixture
def config(home):
    """Write ~/.ssh/config."""
    return (home / ".ssh" / "config").write_text


def to(host, **fields):
    return resolve(Node(name="alice", host=host, **fields), FOLDER)


def refusal(host="bob", **fields):
    with pytest.raises(ConfigError) as caught:
        to(host, **fields)
    assert caught.value.message.startswith("node alice: ")
    return caught.value


# A name


def test_a_host_that_no_configuration_knows_is_what_ssh_takes_it_for(home):
    bob = to("BOB.example.org")
    assert (bob.name, bob.address, bob.port) == ("BOB.example.org", "bob.example.org", 22)
    assert bob.user == subprocess.check_output(["id", "-un"], text=True).strip()
    assert home / ".ssh" / "id_ed25519" in bob.identity_files
    assert not bob.is_identity_given
    assert not bob.identities_only
    assert bob.known_hosts[:2] == (FOLDER / "known_hosts", home / ".ssh" / "known_hosts")
    assert Path("/etc/ssh/ssh_known_hosts") in bob.known_hosts
    assert (bob.connect_timeout_s, bob.alive_interval_s, bob.alive_count) == (10, 5, 3)
    assert (bob.agent, bob.host_key_alias, bob.bind_address, bob.proxy_command) == (None, None, None, None)
    assert bob.address_family == "any"
    assert (bob.jumps, bob.certificate_files) == ((), ())
    assert (bob.ciphers, bob.macs, bob.kex, bob.host_key_algorithms, bob.key_algorithms) == (None,) * 5


@pytest.mark.parametrize("address", ["::1", "fe80::1%eth0", "2001:db8::7"])
def test_a_host_may_be_an_ipv6_address(address):
    assert to(address).address == address


@pytest.mark.parametrize(
    ("host", "user", "address", "port"),
    [
        ("eve@bob", "eve", "bob", 22),
        ("ssh://eve@bob:2222", "eve", "bob", 2222),
        ("ssh://eve@[::1]:2222/", "eve", "::1", 2222),
        ("eve@corp@bob", "eve@corp", "bob", 22),
    ],
)
def test_a_host_may_say_user_and_port_as_for_ssh(host, user, address, port):
    bob = to(host)
    assert (bob.name, bob.user, bob.address, bob.port) == (host, user, address, port)


@pytest.mark.parametrize(
    "host",
    [
        "-oProxyCommand=touch x",
        "-v",
        "a b",
        "a\nb",
        "a\x07b",
        "",
        "eve@",
        "a;b",
        "$(a)",
        "`a`",
        "a|b",
        "a,b",
        "*",
        "ssh://",
    ],
)
def test_what_could_be_an_option_or_a_command_is_no_host(host):
    error = refusal(host)
    assert "host" in error.message


@pytest.mark.parametrize("user", ["-v", "a;b", "a\nb", "a -b", "$a", "", "a\\"])
def test_what_could_be_an_option_or_a_command_is_no_user(user):
    assert "user" in refusal("bob", user=user).message


@pytest.mark.parametrize("jump", ["-v", "a,-v", "a;b", "a b", "a:b", "a:0", "a:65536", "a,,b", "::1", "", "@a"])
def test_what_is_no_host_is_no_jump(jump):
    refusal("bob", jump=jump)


# ~/.ssh/config


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        ("HostName 192.0.2.7", "address", "192.0.2.7"),
        ("HostName %h.example.org", "address", "bob.example.org"),
        ("Port 2222", "port", 2222),
        ("User eve", "user", "eve"),
        ("IdentityFile /keys/one", "identity_files", (Path("/keys/one"),)),
        ("IdentityFile /keys/one\nIdentityFile /k/two", "identity_files", (Path("/keys/one"), Path("/k/two"))),
        ('IdentityFile "/keys/my key"', "identity_files", (Path("/keys/my key"),)),
        ("IdentityFile /keys/%n-%h-%r-%p%%", "identity_files", (Path("/keys/bob-bob-root-22%"),)),
        ("IdentityFile none", "identity_files", ()),
        ("IdentityFile /keys/one", "is_identity_given", True),
        ("IdentitiesOnly yes", "identities_only", True),
        ("CertificateFile /keys/c-cert.pub", "certificate_files", (Path("/keys/c-cert.pub"),)),
        ("IdentityAgent /run/agent-%h", "agent", "/run/agent-bob"),
        ("IdentityAgent none", "agent", None),
        ("HostKeyAlias Cluster", "host_key_alias", "cluster"),
        ("ConnectTimeout 1m", "connect_timeout_s", 60),
        ("ServerAliveInterval 7", "alive_interval_s", 7),
        ("ServerAliveCountMax 9", "alive_count", 9),
        ("BatchMode yes", "alive_interval_s", 5),
        ("AddressFamily inet6", "address_family", "inet6"),
        ("BindAddress 192.0.2.1", "bind_address", "192.0.2.1"),
        ("ProxyCommand nc -x p %h %p # %r@%n 100%%", "proxy_command", "nc -x p bob 22 # root@bob 100%"),
        ("ProxyCommand none", "proxy_command", None),
        ("Ciphers aes256-gcm@openssh.com,aes128-ctr", "ciphers", ("aes256-gcm@openssh.com", "aes128-ctr")),
        ("MACs hmac-sha2-512", "macs", ("hmac-sha2-512",)),
        ("KexAlgorithms curve25519-sha256", "kex", ("curve25519-sha256",)),
        ("HostKeyAlgorithms ssh-ed25519", "host_key_algorithms", ("ssh-ed25519",)),
        ("PubkeyAcceptedAlgorithms ssh-ed25519", "key_algorithms", ("ssh-ed25519",)),
        ("RequiredRSASize 3072", "least_rsa_bits", 3072),
    ],
)
def test_the_configuration_is_honoured(config, option, field, value):
    config(f"Host bob\n{option}\nHost *\nUser root\n")
    assert getattr(to("bob"), field) == value


def test_a_list_of_algorithms_may_leave_one_out(config):
    config("Host bob\nCiphers -chacha20-poly1305@openssh.com\n")
    ciphers = to("bob").ciphers
    assert ciphers
    assert "aes128-ctr" in ciphers
    assert "chacha20-poly1305@openssh.com" not in ciphers


def test_the_tilde_is_home(home, config, monkeypatch):
    monkeypatch.setenv("KEYS", "/keys")
    config(
        "Host bob\nIdentityFile ~/.ssh/k\nIdentityFile ${KEYS}/k\nIdentityFile %d/x\nCertificateFile ~/c\n"
        "IdentityAgent ~/agent\nUserKnownHostsFile ~/kh /other/kh\nGlobalKnownHostsFile none\n"
    )
    bob = to("bob")
    assert bob.identity_files == (home / ".ssh" / "k", Path("/keys/k"), home / "x")
    assert bob.certificate_files == (home / "c",)
    assert bob.agent == str(home / "agent")
    assert bob.known_hosts == (FOLDER / "known_hosts", home / "kh", Path("/other/kh"))


def test_the_agent_is_that_of_the_environment(config, monkeypatch):
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/one")
    monkeypatch.setenv("OTHER", "/run/other")
    config("Host a\nIdentityAgent none\nHost b\nIdentityAgent $OTHER\nHost c\nIdentityAgent SSH_AUTH_SOCK\n")
    assert [to(host).agent for host in ("a", "b", "c", "d")] == [None, "/run/other", "/run/one", "/run/one"]


def test_wildcards_match_and_include_mean_what_they_mean_to_ssh(home, config):
    (home / "more").write_text("Host *.lab\nPort 2201\n")
    config(
        f"Include {home}/more\n"
        "Match host *.lab,!eve.lab\nUser fed\n"
        'Match originalhost eve.lab exec "test %h = eve.lab"\nUser eve\n'
        'Match originalhost bob.lab exec "false"\nHostName wrong\n'
        "Host *\nUser other\nPort 2202\n"
    )
    found = {host: to(host) for host in ("bob.lab", "eve.lab", "far")}
    assert {host: (end.user, end.port) for host, end in found.items()} == {
        "bob.lab": ("fed", 2201),
        "eve.lab": ("eve", 2201),
        "far": ("other", 2202),
    }
    assert found["bob.lab"].address == "bob.lab"


@pytest.mark.parametrize("line", ["Include more", "include = ~/more", 'Include "more"'])
def test_an_include_that_ssh_would_look_for_elsewhere_is_named(config, line):
    """With a HOME that is not the account's, ssh still looks into the account's."""
    config(f"Host x\n  {line}\n")
    error = refusal()
    assert "Include that cannot be followed" in error.message
    assert "in full" in error.hint


def test_a_mistake_in_the_configuration_is_told_in_the_words_of_ssh(config):
    config("Host bob\nPort many\n")
    assert "config line 2: Bad port" in refusal().message


@pytest.mark.parametrize(
    ("option", "part"),
    [
        ("IdentityFile /keys/%z", "%z"),
        ("IdentityFile ${NOT_SET}/k", "NOT_SET"),
        ("ProxyCommand nc %z", "%z"),
        ("ProxyCommand nc %", "nc %"),
        ("HostKeyAlias a*", "a*"),
        ("HostName a*b", "a*b"),
    ],
)
def test_what_cannot_be_filled_in_is_named(config, option, part):
    config(f"Host bob\n{option}\n")
    assert part in refusal().message


# fed.yaml stands above it


def test_what_a_node_says_stands_above_the_configuration(home, config):
    config("Host bob\nUser eve\nPort 2222\nIdentityFile /keys/one\nProxyJump far\n")
    (home / "k").touch()
    bob = to("bob", user="fed", port=2201, key=str(home / "k"), jump="near")
    assert (bob.user, bob.port) == ("fed", 2201)
    assert bob.identity_files == (home / "k",)
    assert bob.is_identity_given
    assert bob.identities_only
    assert [hop.address for hop in bob.jumps] == ["near"]
    assert bob.jumps[0].identity_files != bob.identity_files
    assert to("bob", key="~/k").identity_files == (home / "k",)
    assert to("ssh://root@bob:22", user="fed", port=23).port == 23


def test_a_key_is_looked_for_beside_fed_yaml_and_must_be_there():
    assert refusal(key="keys/mine").message == f"node alice: key: there is no {FOLDER}/keys/mine"


def test_a_key_of_an_unknown_account_is_refused():
    said = refusal(key="~no-such-account/k").message
    assert said == "node alice: key: ~no-such-account/k: there is no such account here"


def test_a_file_of_an_unknown_account_is_refused(config):
    config("Host bob\nCertificateFile ~no-such-account/k\n")
    assert refusal().message == "node alice: CertificateFile ~no-such-account/k: there is no such account here"


def test_a_user_may_be_of_a_domain():
    assert to("bob", user="LAB\\fed").user == "LAB\\fed"


# Jump hosts


def way(endpoint):
    return [f"{hop.user}@{hop.address}:{hop.port}" for hop in endpoint.jumps]


def test_a_jump_host_has_options_of_its_own(config):
    config(
        "Host bob\nProxyJump gate\nHost gate\nHostName gate.example.org\nPort 2200\nUser guard\n"
        "HostKeyAlias door\nIdentityFile /keys/gate\n"
    )
    bob = to("bob")
    assert bob.proxy_command is None
    assert way(bob) == ["guard@gate.example.org:2200"]
    assert bob.jumps[0].name == "gate"
    assert bob.jumps[0].host_key_alias == "door"
    assert bob.jumps[0].identity_files == (Path("/keys/gate"),)
    assert bob.jumps[0] == to("gate")


def test_the_first_of_several_jump_hosts_is_reached_as_its_own_options_say(config):
    config(
        "Host *\nUser u\nHost bob\nProxyJump a,b\nHost a\nProxyJump first\nHost b\nProxyJump ignored\n"
        "Host first\nProxyCommand nc %h %p\n"
    )
    bob = to("bob")
    assert way(bob) == ["u@first:22", "u@a:22", "u@b:22"]
    assert bob.jumps[0].proxy_command == "nc first 22"
    assert [hop.jumps for hop in bob.jumps] == [bob.jumps[:n] for n in range(3)]


@pytest.mark.parametrize(
    ("jump", "expected"),
    [
        ("gate", ["u@gate:22"]),
        ("eve@gate:2222", ["eve@gate:2222"]),
        ("[2001:db8::7]:2222", ["u@2001:db8::7:2222"]),
        ("eve@[::1]", ["eve@::1:22"]),
        ("ssh://eve@gate:2222", ["eve@gate:2222"]),
        ("ssh://eve@one:2222,two,eve@[::1]:23", ["eve@one:2222", "u@two:22", "eve@::1:23"]),
        ("none", []),
    ],
)
def test_jump_hosts_are_written_as_for_ssh(config, jump, expected):
    config("Host bob eve\nProxyJump other\nHost *\nUser u\n")
    assert way(to("bob", jump=jump)) == expected
    config(f"Host eve\nProxyJump {jump}\nHost *\nUser u\n")
    sshoptions._printed.cache_clear()
    assert way(to("eve")) == expected


def test_the_name_of_a_jump_host_may_come_from_the_node(config):
    config("Host bob\nHostName bob.lab\nProxyJump gate-%n-%h\n")
    assert to("bob").jumps[0].address == "gate-bob-bob.lab"


def test_of_a_jump_and_a_command_the_first_one_counts(config):
    config("Host a\nProxyJump gate\nProxyCommand nc\nHost b\nProxyCommand nc\nProxyJump gate\n")
    assert [(len(end.jumps), end.proxy_command) for end in (to("a"), to("b"))] == [(1, None), (0, "nc")]
    assert [(len(end.jumps), end.proxy_command) for end in (to("a", jump="x"), to("b", jump="x"))] == [(1, None)] * 2


@pytest.mark.parametrize(
    "text",
    [
        "Host bob\nProxyJump bob\n",
        "Host bob\nProxyJump a\nHost a\nProxyJump bob\n",
        "Host bob\nProxyJump a\nHost a\nProxyJump b\nHost b\nProxyJump a\n",
        "Host *\nProxyJump x%h\n",
    ],
)
def test_jump_hosts_in_a_circle_are_refused(config, text):
    config(text)
    assert any(word in refusal().message for word in ("circle: bob -> ", "jumphost loop"))


def test_many_nodes_behind_one_host_share_it_and_ask_about_it_once(config):
    config("Host node-*\nProxyJump gate\n")
    sshoptions._printed.cache_clear()
    gates = {to(f"node-{number}").jumps[0] for number in range(5)}
    assert len(gates) == 1
    assert sshoptions._printed.cache_info().misses == 5 + 1 + 1, "the nodes, the host, ssh's defaults"


# What fedctl does not do


@pytest.mark.parametrize(
    "option",
    [
        "BindInterface lo",
        "HostbasedAuthentication yes",
        "KnownHostsCommand /bin/keys",
        "PKCS11Provider /lib/p.so",
        "PreferredAuthentications password,keyboard-interactive",
        "ProxyUseFdpass yes",
        "PubkeyAuthentication no",
        "RemoteCommand tmux",
        "RevokedHostKeys /etc/revoked",
        "SecurityKeyProvider /lib/sk.so",
        "SessionType none",
        "Tunnel yes",
        "VerifyHostKeyDNS yes",
    ],
)
def test_an_option_that_cannot_be_honoured_is_named(config, option):
    config(f"Host bob\n{option}\n")
    error = refusal()
    assert f"bob: the ssh configuration says `{option.split()[0]} " in error.message
    assert error.hint


@pytest.mark.parametrize("option", ["PKCS11Provider /lib/p.so", "PubkeyAuthentication no"])
def test_it_is_named_for_a_jump_host_too(config, option):
    config(f"Host bob\nProxyJump gate\nHost gate\n{option}\n")
    assert "node alice: gate: the ssh configuration says" in refusal().message


def test_what_would_run_on_a_jump_host_does_not_matter(config):
    config("Host bob\nProxyJump gate\nHost gate\nRemoteCommand menu\nSessionType none\n")
    assert way(to("bob"))


def test_options_that_do_not_matter_are_let_be(config):
    config(
        "Host *\nStrictHostKeyChecking no\nHashKnownHosts yes\nGSSAPIAuthentication yes\nSendEnv LANG LC_*\n"
        "SetEnv TERM=xterm\nCompression yes\nForwardAgent yes\nForwardX11 yes\nLocalForward 8080 localhost:80\n"
        "ControlMaster auto\nControlPath ~/.ssh/%C\nControlPersist 60\nVisualHostKey yes\nLogLevel DEBUG\n"
        "AddKeysToAgent yes\nCheckHostIP yes\nRequestTTY force\nPasswordAuthentication no\nRekeyLimit 1G 1h\n"
        "IgnoreUnknown UseKeychain\nUseKeychain yes\nCASignatureAlgorithms ssh-ed25519\nIPQoS none\n"
        "PreferredAuthentications publickey,password\nPubkeyAuthentication unbound\nVerifyHostKeyDNS ask\n"
        "PermitLocalCommand yes\nLocalCommand true\nPKCS11Provider none\nTunnel no\nUpdateHostKeys yes\n"
    )
    assert to("bob").address == "bob"


def test_every_option_that_ssh_has_is_decided_on_once():
    printed = subprocess.run(["ssh", "-F", "none", "-G", "x"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    names = {line.split()[0].lower() for line in printed.stdout.splitlines()}
    assert len(names) > 70
    assert names <= {option.lower() for option in sshoptions.decided()}
    words = f"{sshoptions.HONOURED} {' '.join(sshoptions.HARMLESS.values())}".split()
    words += [*sshoptions.REFUSED, *sshoptions.REFUSED_AT_NODES]
    assert len(words) == len(set(words))


def test_an_option_that_is_newer_than_fedctl_is_named():
    options = sshoptions.Options({"novelty": ("yes",)}, frozenset({"novelty"}))
    with pytest.raises(ConfigError, match="sets novelty, which fedctl does not know"):
        sshoptions.check(options, is_hop=True)


# Without an `ssh`


@pytest.fixture
def without_ssh(monkeypatch, tmp_path):
    """Resolve with paramiko's reader, in an environment that has no `ssh`."""

    def found(host, **said):
        monkeypatch.setenv("PATH", str(tmp_path))
        parsed = paramiko.SSHConfig.from_path(str(Path("~/.ssh/config").expanduser()))
        return resolve(Node(name="alice", host=host, **said), FOLDER, lookup=parsed.lookup)

    return found


def test_without_ssh_the_same_is_found(config, without_ssh):
    config(
        "Host bob\nHostName bob.example.org\nPort 2222\nProxyJump a,eve@b:23\nIdentityFile ~/.ssh/k\n"
        "IdentitiesOnly yes\n"
        'UserKnownHostsFile ~/kh "/my folder/kh"\nGlobalKnownHostsFile /dev/null\nServerAliveInterval 7\n'
        "Ciphers aes128-ctr\nHostKeyAlias Alias\nCertificateFile ~/c-%h\nConnectTimeout 4\n"
        "Host b\nProxyCommand none\nHost a\nProxyCommand nc %h %p\nHost *\nUser u\nIdentityFile /keys/all\n"
        "GlobalKnownHostsFile /dev/null\nRequiredRSASize 1024\n"
    )
    expected = to("bob", port=24), to("bob", jump="none"), to("bob", jump="c")
    found = without_ssh("bob", port=24), without_ssh("bob", jump="none"), without_ssh("bob", jump="c")
    for one, other in zip(found, expected, strict=True):
        for field in fields(one):
            assert getattr(one, field.name) == getattr(other, field.name), field.name


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("Include more\n", "Include"),
        ("Host bob\nCiphers -aes128-ctr\n", "ciphers -aes128-ctr"),
        ("Host bob\nConnectTimeout 1m\n", "connecttimeout 1m"),
        ("Host bob\nProxyJump a\nProxyCommand nc\n", "both"),
        ("Host bob\nProxyJump eve@a\nHost a\nProxyCommand nc %h %r\n", "a has a ProxyCommand"),
    ],
)
def test_what_takes_an_ssh_to_read_is_named(config, without_ssh, text, part):
    config(text)
    with pytest.raises(ConfigError, match=part) as caught:
        without_ssh("bob")
    assert "OpenSSH client" in caught.value.hint


def test_without_ssh_an_option_that_cannot_be_honoured_is_named_too(config, without_ssh):
    config("Host bob\nPubkeyAuthentication no\n")
    with pytest.raises(ConfigError, match="PubkeyAuthentication no"):
        without_ssh("bob")


def test_without_ssh_more_algorithms_than_its_own_rule_nothing_out(config, without_ssh):
    config("Host bob\nCiphers +aes128-cbc\nHostKeyAlgorithms ^ssh-rsa\n")
    assert without_ssh("bob").ciphers is None
