"""What `ssh` would be told about a host: the options of ~/.ssh/config, with fed.yaml's values above them.

`ssh -G` reads the files, so Include, Match and wildcards mean what they mean to `ssh`. Every option is decided on in a
table: it is honoured, it does not matter to fedctl, or it is refused by name. None is ignored in silence.
"""

import os
import pwd
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fedctl.errors import ConfigError

Lookup = Callable[[str], Mapping[str, Any]]
"""A reader of `config_files` for where there is no `ssh`: the options of a host by their lower-case names."""

_INSTALL = "install the OpenSSH client, which reads all of it: `apt install openssh-client`"
_ANSWER_S = 30
"""`ssh -G` takes milliseconds, but it runs what `Match exec` says and may look names up."""

HONOURED = """
    Host HostName Port User AddressFamily BindAddress ProxyCommand ProxyJump ConnectTimeout ServerAliveInterval
    ServerAliveCountMax IdentityFile IdentitiesOnly IdentityAgent CertificateFile HostKeyAlias UserKnownHostsFile
    GlobalKnownHostsFile Ciphers MACs KexAlgorithms HostKeyAlgorithms PubkeyAcceptedAlgorithms RequiredRSASize
    CanonicalDomains CanonicalizeFallbackLocal CanonicalizeHostname CanonicalizeMaxDots CanonicalizePermittedCNAMEs
    Tag IgnoreUnknown Include Match
"""

HARMLESS: Mapping[str, str] = {
    "a public key is what fedctl logs in with": """
        GSSAPIAuthentication GSSAPIClientIdentity GSSAPIDelegateCredentials GSSAPIKexAlgorithms GSSAPIKeyExchange
        GSSAPIRenewalForcesRekey GSSAPIServerIdentity GSSAPITrustDns HostbasedAcceptedAlgorithms EnableSSHKeysign
        KbdInteractiveAuthentication KbdInteractiveDevices ChallengeResponseAuthentication PasswordAuthentication
        NumberOfPasswordPrompts BatchMode AddKeysToAgent UseKeychain""",
    "host keys are always checked against known_hosts files, and never accepted unseen": """
        StrictHostKeyChecking NoHostAuthenticationForLocalhost CheckHostIP HashKnownHosts UpdateHostKeys
        CASignatureAlgorithms FingerprintHash VisualHostKey""",
    "fedctl forwards nothing": """
        ForwardAgent ForwardX11 ForwardX11Timeout ForwardX11Trusted XAuthLocation LocalForward RemoteForward
        DynamicForward ClearAllForwardings ExitOnForwardFailure GatewayPorts PermitRemoteOpen StreamLocalBindMask
        StreamLocalBindUnlink TunnelDevice""",
    "fedctl keeps lines, threads and attempts of its own": """
        ControlMaster ControlPath ControlPersist ConnectionAttempts TCPKeepAlive Compression RekeyLimit IPQoS
        ChannelTimeout ObscureKeystrokeTiming ProtocolKeepAlives SetupTimeOut""",
    "there is no terminal and no shell to prepare": """
        RequestTTY EscapeChar EnableEscapeCommandline StdinNull ForkAfterAuthentication SendEnv SetEnv LocalCommand
        PermitLocalCommand""",
    "it is about what `ssh` prints": "LogLevel LogVerbose SyslogFacility VersionAddendum WarnWeakCrypto",
}

REFUSED: Mapping[str, tuple[str, str]] = {
    "BindInterface": ("none", "give the address to leave from as `BindAddress`"),
    "HostbasedAuthentication": ("no", "set `HostbasedAuthentication no` there: fedctl logs in with a public key"),
    "KnownHostsCommand": ("none", "write the keys that it prints to ~/.ssh/known_hosts, and set it to `none`"),
    "PKCS11Provider": ("none", "put its keys into the agent with `ssh-add -s`, and set it to `none`"),
    "PreferredAuthentications": (r"(.*,)?publickey(,.*)?", "name `publickey` in it: fedctl logs in with a public key"),
    "ProxyUseFdpass": ("no", "use a ProxyCommand that carries the bytes itself, such as `nc %h %p`"),
    "PubkeyAuthentication": ("yes|unbound|host-bound", "set `PubkeyAuthentication yes`: fedctl has no other way in"),
    "RefuseConnection": ("", "ssh itself would not connect"),
    "RevokedHostKeys": ("none", "mark the revoked keys `@revoked` in ~/.ssh/known_hosts, and set it to `none`"),
    "SecurityKeyProvider": ("internal", "put the key into the agent with `ssh-add -S`, and set it to `internal`"),
    "Tunnel": ("no", "set `Tunnel no` there"),
    "VerifyHostKeyDNS": ("no|ask", "set it to `ask`: fedctl trusts known_hosts files only"),
}
"""The values that are fine all the same, and what to do about the others."""

REFUSED_AT_NODES: Mapping[str, tuple[str, str]] = {
    "RemoteCommand": ("none", "set `RemoteCommand none` there: fedctl starts a command of its own"),
    "SessionType": ("default", "set `SessionType default` there: fedctl starts a command"),
}
"""The same for options that do not touch those who only pass through."""

_DEFAULTS = """
addressfamily any
globalknownhostsfile /etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2
identityfile ~/.ssh/id_rsa
identityfile ~/.ssh/id_ecdsa
identityfile ~/.ssh/id_ed25519
userknownhostsfile ~/.ssh/known_hosts ~/.ssh/known_hosts2
port 22
requiredrsasize 1024
"""
"""As `ssh -F none -G` prints them, for where there is no `ssh`."""

_LISTED = ("ciphers", "macs", "kexalgorithms", "hostkeyalgorithms", "pubkeyacceptedalgorithms")
_RELATIVE_INCLUDE = re.compile(r"^\s*include[\s=]+\"?[^/\s\"]", re.IGNORECASE | re.MULTILINE)
_INCLUDE = re.compile(r"^\s*include\b", re.IGNORECASE | re.MULTILINE)

Values = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one host by their lower-case names; `given` has those that are not ssh's own defaults."""

    values: Values
    given: frozenset[str]

    def every(self, option: str) -> tuple[str, ...]:
        """The values of an option that may stand several times, without `none`."""
        return tuple(value for value in self.values.get(option, ()) if value.lower() != "none")

    def one(self, option: str) -> str | None:
        """The value; None where there is none, or where it is `none`."""
        return next(iter(self.every(option)), None)

    def number(self, option: str) -> int:
        """The value; 0 where there is none. Raises ConfigError."""
        text = self.one(option) or "0"
        if not text.isdecimal():
            raise ConfigError(f"{option} {text} cannot be read without `ssh`", hint=_INSTALL)
        return int(text)

    def listed(self, option: str) -> tuple[str, ...] | None:
        """The algorithms, most wanted first; None where the user leaves the choice."""
        text = self.one(option)
        return tuple(text.split(",")) if text and option in self.given else None


def read(host: str, *, user: str | None, port: int | None, jump: str | None, lookup: Lookup | None) -> Options:
    """What ssh would be told about `host` with these on its command line; raises ConfigError."""
    if shutil.which("ssh") is None:
        return _looked_up(host, user, port, jump, lookup)
    asked = (*_choice("-l", user), *_choice("-p", port), *_choice("-J", jump))
    values = _printed((*_files(), *asked, "--", host))
    defaults = _printed(("-F", "none", "--", "localhost"))
    return Options(values, frozenset(name for name, value in values.items() if value != defaults.get(name)))


def check(options: Options, *, is_hop: bool) -> None:
    """Raise ConfigError where an option asks for what fedctl does not do."""
    refused = REFUSED if is_hop else {**REFUSED, **REFUSED_AT_NODES}
    for option, (fine, hint) in refused.items():
        if option.lower() in options.given:
            value = " ".join(options.values[option.lower()])
            if not re.fullmatch(fine, {"true": "yes", "false": "no"}.get(value.lower(), value.lower())):
                raise ConfigError(f"the ssh configuration says `{option} {value}`, which fedctl cannot do", hint=hint)
    if unknown := sorted(options.given - {option.lower() for option in decided()}):
        hint = "set it for other hosts only, in ~/.ssh/config"
        raise ConfigError(f"the ssh configuration sets {unknown[0]}, which fedctl does not know", hint=hint)


def decided() -> frozenset[str]:
    """Every option that stands in a table."""
    return frozenset((*" ".join((HONOURED, *HARMLESS.values())).split(), *REFUSED, *REFUSED_AT_NODES))


def config_files() -> tuple[Path, ...]:
    """What ssh reads, as far as it exists: the general file counts only where $HOME is the account's home."""
    config = Path.home() / ".ssh" / "config"
    return (config, Path("/etc/ssh/ssh_config")) if str(Path.home()) == account_home() else (config,)


def account_home() -> str | None:
    """Where `ssh` sees ~ , which is not always $HOME; None for an account that is not on record."""
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None


def _choice(flag: str, value: str | int | None) -> tuple[str, ...]:
    return () if value is None else (flag, str(value))


def _files() -> tuple[str, ...]:
    """Make ssh read $HOME/.ssh/config, where it would look into the account's home on its own."""
    config, *general = config_files()
    if general:
        return ()
    _refuse_includes(config, _RELATIVE_INCLUDE, "write the path of the Include in full: ssh would not look in $HOME")
    return ("-F", str(config) if config.exists() else "none")


def _refuse_includes(config: Path, pattern: re.Pattern[str], hint: str) -> None:
    try:
        found = pattern.search(config.read_text(errors="replace"))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigError(f"{config} cannot be read: {error.strerror}") from None
    if found:
        raise ConfigError(f"{config} has an Include that cannot be followed", hint=hint)


@cache
def _printed(argv: tuple[str, ...]) -> Values:
    """What `ssh -G` prints; a program that runs once asks once about a host, however many nodes share it."""
    try:
        done = subprocess.run(
            ("ssh", *argv[:-2], "-G", *argv[-2:]),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
            errors="surrogateescape",
            timeout=_ANSWER_S,
        )
    except subprocess.TimeoutExpired:
        hint = "see what `Match exec` does in ~/.ssh/config"
        raise ConfigError(f"`ssh -G {argv[-1]}` does not end", hint=hint) from None
    if done.returncode:
        said = (done.stderr.strip() or f"status {done.returncode}").splitlines()[0]
        raise ConfigError(f"ssh says: {said}", hint=f"`ssh -G {argv[-1]}` should print its configuration")
    return _parsed(done.stdout)


def _parsed(text: str) -> Values:
    values: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name:
            values[name.lower()] = (*values.get(name.lower(), ()), value)
    return values


def _looked_up(host: str, user: str | None, port: int | None, jump: str | None, lookup: Lookup | None) -> Options:
    for file in config_files():
        _refuse_includes(file, _INCLUDE, _INSTALL)
    found = {
        name: tuple(value) if isinstance(value, list) else (str(value),)
        for name, value in (lookup(host) if lookup else {}).items()
        if value is not None
    }
    if jump is not None:
        found["proxyjump"] = (jump,)
        if jump.lower() != "none":
            found.pop("proxycommand", None)
    if {"proxycommand", "proxyjump"} <= found.keys():
        raise ConfigError(f"{host} has both a ProxyJump and a ProxyCommand", hint=_INSTALL)
    if (user or port) and "proxycommand" in found:  # it is already filled in, with the configuration's own
        raise ConfigError(f"{host} has a ProxyCommand, and a user or port from elsewhere", hint=_INSTALL)
    for option in {"userknownhostsfile", "globalknownhostsfile"} & found.keys():
        found[option] = (" ".join(shlex.split(*found[option])),)
    for option in _LISTED:
        text = "".join(found.get(option, ()))
        if text.startswith("-") or set(text) & set("*?"):
            raise ConfigError(f"the list {option} {text} cannot be worked out without `ssh`", hint=_INSTALL)
        if text.startswith(("+", "^")):  # more than ssh's own, so nothing is ruled out
            found.pop(option)
    account = {"user": (pwd.getpwuid(os.getuid()).pw_name,)} if account_home() else {}
    asked = {name: (str(value),) for name, value in (("user", user), ("port", port)) if value is not None}
    return Options({**_parsed(_DEFAULTS), **account, "hostname": (host,), **found, **asked}, frozenset(found))
