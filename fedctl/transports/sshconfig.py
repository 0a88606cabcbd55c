"""`host: NAME` means what it means to `ssh NAME`: where, as whom, with which keys and through which hosts.

~/.ssh/config is honoured and fed.yaml stands above it. ~ is $HOME, also where the account's home is another.
"""

import os
import pwd
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, cast

from fedctl.errors import ConfigError
from fedctl.federation import Node
from fedctl.transports.sshoptions import Lookup, Options, account_home, check, read

__all__ = ["Endpoint", "resolve"]

Family = Literal["any", "inet", "inet6"]

CONNECT_TIMEOUT_S = 10.0
ALIVE_INTERVAL_S = 5.0
ALIVE_COUNT = 3
KNOWN_HOSTS = "known_hosts"
"""The federation's own file of host keys, beside fed.yaml."""

_MOST_HOPS = 16
_BATCH_INTERVAL_S = 300
_NO_HOST = re.compile(r"^-|[\s\x00-\x1f\x7f\ud800-\udfff'\"`$\\;&<>|(){},*?!#@]")
_NO_USER = re.compile(r"^-|[\x00-\x1f\x7f'\"`;&<>|(){}$]|\s-|\\$")
"""What `ssh` refuses too, as it could be taken for an option or for a command, and what is no name in known_hosts."""

_HOP = re.compile(
    r"(?:ssh://)?(?:(?P<user>.+)@)?(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?/?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One ssh server, and the way to it.

    `name` is as the user wrote it and `address` what it stands for. `is_identity_given`: the identity files are those
    of fed.yaml or the configuration, and not ssh's own defaults; none of them needs to exist. `certificate_files` are
    those that are named; ssh also takes the `-cert.pub` beside an identity. `agent` is a socket. `known_hosts` has the
    federation's own file first. `jumps` are the hosts in between, from here to there, and each has those before it as
    its own `jumps`. Algorithms are None where the user leaves the choice; `key_algorithms` are those to log in with.
    """

    name: str
    address: str
    port: int
    user: str
    identity_files: tuple[Path, ...]
    is_identity_given: bool
    identities_only: bool
    certificate_files: tuple[Path, ...]
    agent: str | None
    known_hosts: tuple[Path, ...]
    host_key_alias: str | None
    connect_timeout_s: float
    alive_interval_s: float
    alive_count: int
    address_family: Family
    bind_address: str | None
    proxy_command: str | None
    jumps: tuple["Endpoint", ...]
    ciphers: tuple[str, ...] | None
    macs: tuple[str, ...] | None
    kex: tuple[str, ...] | None
    host_key_algorithms: tuple[str, ...] | None
    key_algorithms: tuple[str, ...] | None
    least_rsa_bits: int


def resolve(node: Node, folder: Path, *, lookup: Lookup | None = None) -> Endpoint:
    """The server of a node whose fed.yaml is in `folder`; raises ConfigError.

    `lookup` reads ~/.ssh/config where there is no `ssh` to ask.
    """
    try:
        written = _destination(node.host)
        place = _Place(_user(node.user) or written.user, written.host, node.port or written.port)
        endpoint = _Resolver(folder, lookup).endpoint(node.host, place, _way(node.jump))
        key = None if node.key is None else folder / _expanded("key:", node.key)
    except ConfigError as error:
        raise ConfigError(f"node {node.name}: {error.message}", hint=error.hint) from None
    if key is None:
        return endpoint
    if not key.exists():
        raise ConfigError(f"node {node.name}: key: there is no {key}", hint="correct `key:` in fed.yaml")
    return replace(endpoint, identity_files=(key,), is_identity_given=True, identities_only=True)


class _Place(NamedTuple):
    """A server as it was asked for, before the configuration has been read."""

    user: str | None
    host: str
    port: int | None


class _Resolver:
    """Resolves the servers on the way to one node."""

    def __init__(self, folder: Path, lookup: Lookup | None) -> None:
        self._folder = folder
        self._lookup = lookup

    def endpoint(self, name: str, place: _Place, jump: str | None, above: tuple[_Place, ...] = ()) -> Endpoint:
        """`jump` stands above the configuration's ProxyJump; those of `above` are reached through this one."""
        if place in above or len(above) == _MOST_HOPS:
            way = " -> ".join(one.host for one in (*above, place))
            raise ConfigError(f"the jump hosts go in a circle: {way}", hint="set `ProxyJump none` for the outermost")
        options = read(place.host, user=place.user, port=place.port, jump=jump, lookup=self._lookup)
        try:
            check(options, is_hop=bool(above))
        except ConfigError as error:
            raise ConfigError(f"{place.host}: {error.message}", hint=error.hint) from None
        user = next(iter(options.values.get("user", ())), None)
        if user is None:
            raise ConfigError(f"{place.host}: this account has no name", hint="give the node a `user`")
        address = _host(options.values["hostname"][0])
        alias = options.one("hostkeyalias")
        port = options.number("port")
        line = {"%": "%", "h": address, "n": place.host, "p": str(port), "r": user}
        tokens = {**line, **_tokens(alias or place.host)}
        jumps = self._jumps(_filled("ProxyJump", options.one("proxyjump"), line), (*above, place))
        return Endpoint(
            name=name,
            address=address,
            port=port,
            user=user,
            identity_files=_files("IdentityFile", options.every("identityfile"), tokens),
            is_identity_given="identityfile" in options.given,
            identities_only=options.one("identitiesonly") == "yes",
            certificate_files=_files("CertificateFile", options.every("certificatefile"), tokens),
            agent=_agent(options, tokens),
            known_hosts=(self._folder / KNOWN_HOSTS, *_known_hosts(options, tokens)),
            host_key_alias=None if alias is None else _host(alias).lower(),
            connect_timeout_s=float(options.number("connecttimeout")) or CONNECT_TIMEOUT_S,
            alive_interval_s=_alive_interval_s(options),
            alive_count=options.number("serveralivecountmax") or ALIVE_COUNT,
            address_family=cast("Family", options.one("addressfamily")),
            bind_address=options.one("bindaddress"),
            proxy_command=None if jumps else _filled("ProxyCommand", options.one("proxycommand"), line) or None,
            jumps=jumps,
            ciphers=options.listed("ciphers"),
            macs=options.listed("macs"),
            kex=options.listed("kexalgorithms"),
            host_key_algorithms=options.listed("hostkeyalgorithms"),
            key_algorithms=options.listed("pubkeyacceptedalgorithms"),
            least_rsa_bits=options.number("requiredrsasize"),
        )

    def _jumps(self, way: str, above: tuple[_Place, ...]) -> tuple[Endpoint, ...]:
        """As ssh does it: the last one is reached through those before it, and the first as its own options say."""
        if not way:
            return ()
        before, _, last = way.rpartition(",")
        hop = self.endpoint(last, _hop(last), before or None, above)
        return (*hop.jumps, hop)


def _destination(text: str) -> _Place:
    """`NAME`, `user@NAME` or `ssh://user@NAME:port`; an IPv6 address stands without brackets."""
    if text.startswith("ssh://"):
        return _hop(text)
    user, _, host = text.rpartition("@")
    return _Place(_user(user or None), _host(host), None)


def _hop(text: str) -> _Place:
    match = _HOP.fullmatch(text)
    if match is None or not 0 < int(match["port"] or 22) < 65_536:
        raise ConfigError(
            f"`{text}` is no host to connect to", hint="write `host`, `user@host:port` or `[address]:port`"
        )
    return _Place(_user(match["user"]), _host(match["v6"] or match["host"]), int(match["port"] or 0) or None)


def _way(jump: str | None) -> str | None:
    """The jump hosts of fed.yaml, each of them looked at before ssh sees it."""
    if jump is not None and jump.lower() != "none":
        for hop in jump.split(","):
            _hop(hop)
    return jump


def _host(text: str) -> str:
    if not text or _NO_HOST.search(text):
        raise ConfigError(f"{text!r} cannot be the name of a host")
    return text


def _user(text: str | None) -> str | None:
    if text is not None and (not text or _NO_USER.search(text)):
        raise ConfigError(f"{text!r} cannot be the name of a user")
    return text


def _tokens(key_name: str) -> Mapping[str, str]:
    """What ssh puts into the names of files, beside the server's own address."""
    full = socket.gethostname()
    account = pwd.getpwuid(os.getuid()).pw_name if account_home() else ""
    return {
        "d": str(Path.home()),
        "i": str(os.getuid()),
        "k": key_name,
        "L": full.partition(".")[0],
        "l": full,
        "u": account,
    }


def _filled(option: str, text: str | None, tokens: Mapping[str, str]) -> str:
    def token(match: re.Match[str]) -> str:
        if match[1] not in tokens:
            raise ConfigError(f"{option} {text} has {match[0]}, which fedctl does not know", hint="write it out")
        return tokens[match[1]]

    return re.sub("%(.?)", token, text or "")


def _file(option: str, text: str, tokens: Mapping[str, str]) -> str:
    def variable(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f"{option} {text} needs {match[1]} in the environment", hint=f"`export {match[1]}=`")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", variable, _filled(option, text, tokens))


def _files(option: str, texts: tuple[str, ...], tokens: Mapping[str, str]) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(_expanded(option, _file(option, text, tokens)) for text in texts))


def _agent(options: Options, tokens: Mapping[str, str]) -> str | None:
    value = options.values.get("identityagent", ("SSH_AUTH_SOCK",))[0]
    if value.lower() == "none":
        return None
    if value == "SSH_AUTH_SOCK":
        return os.environ.get("SSH_AUTH_SOCK") or None
    if re.fullmatch(r"\$\w+", value):
        return os.environ.get(value[1:]) or None
    return str(_own("IdentityAgent", _file("IdentityAgent", value, tokens)))


def _known_hosts(options: Options, tokens: Mapping[str, str]) -> tuple[Path, ...]:
    files = (*options.every("userknownhostsfile"), *options.every("globalknownhostsfile"))
    each = (file for text in files for file in re.split(" (?=[/~])", text))  # a folder's name may have spaces
    return tuple(_own("UserKnownHostsFile", _file("UserKnownHostsFile", file, tokens)) for file in each)


def _own(option: str, path: str) -> Path:
    """`ssh -G` has already written the account's home for ~, which is $HOME here."""
    account = account_home()
    if account and path.startswith(f"{account}/"):
        path = "~" + path[len(account) :]
    return _expanded(option, path)


def _expanded(option: str, path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{option} {path}: there is no such account here", hint="write its path in full") from None


def _alive_interval_s(options: Options) -> float:
    interval_s = options.number("serveraliveinterval")
    if options.one("batchmode") == "yes" and interval_s == _BATCH_INTERVAL_S:
        interval_s = 0  # Debian's ssh sets this with BatchMode, and not the user
    return float(interval_s) or ALIVE_INTERVAL_S
