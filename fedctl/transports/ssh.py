"""`host: NAME`: a command on another machine, over SSH. The only file that knows paramiko.

A `Line` is one connection to one server, shared by all that runs there; bastions are lines too. Host keys are judged
before anything is said to a server, nothing is ever accepted by itself, and only keys and the agent log in.
"""

import contextlib
import importlib
import logging
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedctl.errors import ConfigError, FedctlError, NodeError, Unreachable
from fedctl.strictjson import printable
from fedctl.transports import known_hosts, sockets
from fedctl.transports.channel import ChannelProcess
from fedctl.transports.client import Client, Refused, patiently
from fedctl.transports.keyring import Keyring, Locked, hung_up, locked_out, unsigned, wants_more
from fedctl.transports.sshconfig import Endpoint
from fedctl.transports.sshoptions import config_files

# Paramiko needs it for `Match exec` alone, see `lookup`, and with it comes the half of what importing paramiko costs.
_is_imported = sys.modules.setdefault("invoke", None) is not None  # type: ignore[arg-type]
import paramiko  # noqa: E402
from paramiko.agent import AgentSSH  # noqa: E402
from paramiko.common import cMSG_CHANNEL_REQUEST, cMSG_GLOBAL_REQUEST  # noqa: E402

if not _is_imported:
    del sys.modules["invoke"]

CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
"""Fastest first; paramiko itself would put GCM last."""
KEY_TYPES = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}
"""The algorithms of a key that are not called as the key is."""
PUBLIC_KEYS: Sequence[str] = paramiko.Transport._preferred_pubkeys  # type: ignore[attr-defined]  # noqa: SLF001
REKEY = 2**35
"""Leave new keys to the server: paramiko's own, at 2**29 bytes, waits for itself when a channel closes meanwhile."""
WINDOW, LONG_WINDOW = 2**21, 2**23
LONG_S = 0.01
"""A round trip from which a command's output needs the longer window."""
GREETING_S = 15.0
OPEN_S = 20.0
LARGEST_PACKET = 2**19
FORBIDDEN = 1
"""RFC 4254's "administratively prohibited"."""

logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)  # whatever goes wrong is raised


class Packetizer(paramiko.packet.Packetizer):
    """Takes no packet of any size that a server claims, before or after its key is judged."""

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:  # noqa: FBT001, FBT002  (paramiko's signature)
        if n > LARGEST_PACKET:
            raise paramiko.SSHException(f"a packet claims {n} bytes")
        return super().read_all(n, check_rekey)


class Line:
    """One connection to one server, logged in."""

    def __init__(self, client: Client, endpoint: Endpoint) -> None:
        self._client = client
        self._endpoint = endpoint
        self._is_used = False
        self._ear, self._transport = patiently(self._connect)
        self.bound_s = endpoint.alive_interval_s * endpoint.alive_count
        self._transport.packetizer.set_keepalive(endpoint.alive_interval_s, self._ask_for_a_sign)
        client.watch.add(self)
        began = time.monotonic()
        # A line that breaks now is found broken by the first command.
        with contextlib.suppress(Exception), sockets.closing_after(OPEN_S, self):
            self._transport.global_request("keepalive@openssh.com", wait=True)
        self._window = LONG_WINDOW if time.monotonic() - began > LONG_S else WINDOW

    @property
    def is_alive(self) -> bool:
        return self._transport.is_active()

    @property
    def is_used(self) -> bool:
        """A command has run over it."""
        return self._is_used

    @property
    def silence_s(self) -> float:
        """How long nothing has come; a server that lives answers every keepalive."""
        return time.monotonic() - self._ear.heard_at

    def open_session(self, command: str) -> ChannelProcess:
        with self._speaking_our_errors():
            channel = self._transport.open_session(window_size=self._window, timeout=OPEN_S)
            self._is_used = True
            process = ChannelProcess(channel, partial(self._kill, channel))
            with sockets.closing_after(OPEN_S, channel):
                channel.exec_command(command)
        return process

    def open_way(self, address: str, port: int) -> paramiko.Channel:
        with self._speaking_our_errors():
            return self._transport.open_channel("direct-tcpip", (address, port), ("127.0.0.1", 0), timeout=OPEN_S)

    @contextlib.contextmanager
    def _speaking_our_errors(self) -> Iterator[None]:
        """Turn what paramiko says of a channel into Refused, and of a broken line into OSError."""
        try:
            yield
        except paramiko.ChannelException as refusal:
            raise Refused(printable(refusal.text or str(refusal)), is_forbidden=refusal.code == FORBIDDEN) from refusal
        except OSError:
            raise
        except Exception as error:  # what a server sends wrongly may be an error of any kind
            if self.is_alive:  # of several refusals at a time paramiko tells one, and of a slow answer nothing
                raise Refused(str(error), is_forbidden=False) from error
            raise ConnectionError(str(error) or "no word came back") from error

    def _kill(self, channel: paramiko.Channel) -> None:
        """End a channel's command; OpenSSH hands the signal to the whole process group."""
        message = paramiko.Message()
        message.add_byte(cMSG_CHANNEL_REQUEST)
        message.add_int(channel.remote_chanid)
        message.add_string("signal")
        message.add_boolean(False)
        message.add_string("KILL")
        self._send(message)

    def close(self) -> None:
        self._client.watch.remove(self)
        self._ear.close()
        self._transport.close()

    def _ask_for_a_sign(self) -> None:
        """A keepalive that must be answered; paramiko's own asks for no answer.

        Not while keys are exchanged: this is the thread that exchanges them, and would wait for itself.
        """
        if not self._transport.clear_to_send.is_set():
            return
        message = paramiko.Message()
        message.add_byte(cMSG_GLOBAL_REQUEST)
        message.add_string("keepalive@openssh.com")
        message.add_boolean(True)
        self._send(message)

    def _send(self, message: paramiko.Message) -> None:
        self._transport._send_user_message(message)  # type: ignore[attr-defined]  # noqa: SLF001  (has no public name)

    def _connect(self) -> tuple[sockets.Ear, paramiko.Transport]:
        endpoint = self._endpoint
        with self._client.place(endpoint).turn():
            ear = self._stream()
            with self._client.logins:
                refused = [kind for kind in PUBLIC_KEYS if kind not in (endpoint.key_algorithms or PUBLIC_KEYS)]
                transport = paramiko.Transport(
                    ear,  # type: ignore[arg-type]
                    WINDOW,
                    disabled_algorithms={"pubkeys": refused},
                    packetizer_class=Packetizer,
                )
                try:
                    _greet(transport, endpoint)
                    _log_in(transport, endpoint, self._client.keyring)
                except BaseException as error:
                    transport.close()
                    ear.close()
                    if isinstance(error, FedctlError) or not isinstance(error, Exception):
                        raise
                    if ear.complaint:
                        message = f"the ProxyCommand to {endpoint.name} said: {printable(ear.complaint)}"
                        raise Unreachable(message, hint=f"try `ssh {endpoint.name}`") from error
                    raise _explained(error, endpoint) from error  # what a server sends wrongly may be one of any kind
        return ear, transport

    def _stream(self) -> sockets.Ear:
        jumps = self._endpoint.jumps
        if not jumps:
            return sockets.connect(self._endpoint)
        return sockets.Ear(self._client.way(jumps[-1], self._endpoint))


class SshTransport:
    """Another machine, as the user of an account there."""

    def __init__(self, client: Client, endpoint: Endpoint) -> None:
        self._client = client
        self._endpoint = endpoint
        for hop in (*endpoint.jumps, endpoint):
            client.keyring.unlock(hop)

    def open(self, argv: Sequence[str]) -> ChannelProcess:
        return self._client.session(self._endpoint, shlex.join(argv))


def new_client() -> Client:
    """An SSH client without lines yet."""
    return Client(Line, Keyring(load_key, Agent))


def load_key(path: Path, passphrase: str | None, certificate: Path | None) -> paramiko.PKey:
    """A private key, with that certificate; raises Locked, OSError or ValueError."""
    try:
        key = paramiko.PKey.from_path(path, passphrase.encode() if passphrase else None)  # type: ignore[arg-type]
        key.public_blob = None  # paramiko takes the certificate beside it by itself
        if certificate is not None:
            key.load_certificate(str(certificate.resolve(strict=True)))
    except (TypeError, paramiko.PasswordRequiredException) as error:
        raise Locked from error
    except (ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType) as error:
        if passphrase:
            raise Locked from error
        raise ValueError(f"{path}: {error}") from error
    return key


class Agent(AgentSSH):
    """The agent behind a socket, for any thread; paramiko's own class knows only that of the environment."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._speaking = threading.Lock()
        line = socket.socket(socket.AF_UNIX)
        try:
            line.connect(path)
            self._connect(line)  # type: ignore[attr-defined]
        except (OSError, paramiko.SSHException) as error:
            line.close()
            raise OSError(f"no agent at {path}: {error}") from error

    def _send_message(self, message: Any) -> Any:
        with self._speaking:
            return super()._send_message(message)  # type: ignore[misc]

    def close(self) -> None:
        self._close()  # type: ignore[attr-defined]


def lookup(host: str) -> Mapping[str, Any]:
    """What ~/.ssh/config says of a host, as far as paramiko reads it; for where there is no `ssh` to ask."""
    paramiko.config.invoke = importlib.import_module("invoke")  # type: ignore[attr-defined]
    config = paramiko.SSHConfig()
    try:
        for file in config_files():
            with file.open(encoding="utf-8", errors="replace") as lines:
                config.parse(lines)
        return config.lookup(host)
    except paramiko.ConfigParseError as error:
        raise ConfigError(f"~/.ssh/config: {error}", hint="try `ssh -G HOST` where OpenSSH is installed") from error


def _greet(transport: paramiko.Transport, endpoint: Endpoint) -> None:
    """Agree on algorithms, and judge the server's key before anything else is said."""
    packetizer = transport.packetizer
    packetizer.REKEY_BYTES = packetizer.REKEY_PACKETS = REKEY
    transport.banner_timeout = transport.auth_timeout = GREETING_S
    options = transport.get_security_options()
    known = [name for kind in known_hosts.known_types(endpoint) for name in KEY_TYPES.get(kind, (kind,))]
    options.ciphers = _allowed(endpoint, "ciphers", CIPHERS, endpoint.ciphers)
    options.kex = _allowed(endpoint, "key exchange", options.kex, endpoint.kex)
    options.digests = _allowed(endpoint, "MACs", options.digests, endpoint.macs)
    options.key_types = _allowed(
        endpoint,
        "host keys",
        sorted(options.key_types, key=lambda name: known.index(name) if name in known else len(known)),
        endpoint.host_key_algorithms,
    )
    transport.start_client(timeout=GREETING_S)
    key = transport.get_remote_server_key()
    known_hosts.judge(endpoint, known_hosts.HostKey(type=key.get_name(), blob=key.asbytes()))


def _allowed(endpoint: Endpoint, what: str, ours: Sequence[str], theirs: tuple[str, ...] | None) -> tuple[str, ...]:
    """What we can do of what the user allows."""
    if both := tuple(name for name in ours if theirs is None or name in theirs):
        return both
    message = f"{endpoint.name}: ~/.ssh/config allows no {what} that fedctl has"
    raise NodeError(message, hint=f"allow one of {', '.join(ours)}")


def _log_in(transport: paramiko.Transport, endpoint: Endpoint, keyring: Keyring) -> None:
    """Offer one key after another; raises LoginError."""
    tried: list[str] = []
    allowed: Sequence[str] = ()
    try:
        for offer in keyring.offers(endpoint):
            tried.append(offer.name)
            try:
                wanted = transport.auth_publickey(endpoint.user, offer.key)
            except paramiko.BadAuthenticationType:
                raise
            except paramiko.AuthenticationException:
                continue
            if wanted:
                raise wants_more(endpoint, wanted)
            return
        transport.auth_none(endpoint.user)
    except paramiko.BadAuthenticationType as refusal:
        allowed = refusal.allowed_types
    except paramiko.SSHException as error:
        if "used for signing" in str(error):
            raise unsigned(endpoint, tried[-1]) from error
        if len(tried) < 2 or transport.is_active():
            raise
        raise hung_up(endpoint, tried) from error
    else:
        return
    raise locked_out(endpoint, tried, allowed, keyring.locked(endpoint))


def _explained(error: Exception, endpoint: Endpoint) -> NodeError:
    if "Indecipherable" in str(error):
        return NodeError(
            f"{endpoint.address} port {endpoint.port} answers, but it is no SSH server", hint="correct `port:`"
        )
    if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
        message = f"{endpoint.name} shares no algorithm with fedctl: {printable(str(error))}"
        return NodeError(message, hint="update its sshd")
    return Unreachable(
        f"{endpoint.address} port {endpoint.port} was reached, but broke off before a login: "
        f"{printable(str(error)) or 'no word'}",
        hint="is it an SSH server? A busy one turns connections away: raise MaxStartups in its sshd_config",
        stage="greeting",
    )
