"""The keys that log in: which are offered to whom, in what order, and how locked ones are unlocked.

A passphrase is asked for once, on the terminal and nowhere else, and is kept in this process's memory alone.
"""

import base64
import contextlib
import getpass
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedctl.errors import LoginError
from fedctl.transports.sshconfig import Endpoint

TRIES = 3


class Locked(Exception):
    """A key file that needs a passphrase, or another one."""


class Agent(Protocol):
    """An agent that holds keys, and signs with them for as long as the line to it is open."""

    def get_keys(self) -> Sequence[Any]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Offer:
    """A key and how people call it."""

    name: str
    key: Any


def ask_on_terminal(prompt: str) -> str | None:
    """What is typed, unseen; None where there is no terminal to ask on, or nobody who answers."""
    try:
        with Path("/dev/tty").open("rb"):
            pass
    except OSError:
        return None
    with contextlib.suppress(EOFError):
        return getpass.getpass(prompt)
    return None


class Keyring:
    """The keys of this process, in files and in agents.

    `load` reads a key file with its passphrase, and with a certificate; it raises Locked, OSError or ValueError.
    `open_agent` asks the agent behind a socket; it raises OSError where there is none.
    """

    def __init__(
        self,
        load: Callable[[Path, str | None, Path | None], Any],
        open_agent: Callable[[str], Agent],
        ask: Callable[[str], str | None] = ask_on_terminal,
    ) -> None:
        self._load = load
        self._open_agent = open_agent
        self._ask = ask
        self._asking = threading.Lock()
        self._agents: dict[str, Agent] = {}
        self._loaded: dict[tuple[Path, Path | None], Any] = {}
        self._passphrases: dict[Path, str | None] = {}

    def unlock(self, endpoint: Endpoint) -> None:
        """Ask for the passphrases that a login there will need, while the terminal is still free."""
        files = self._files(endpoint)
        unlocked = [name for name, key in files.items() if key is not None]
        in_agent = {key.asbytes() for key in self._of_agent(endpoint)}
        needed = endpoint.is_identity_given or not (unlocked or in_agent)
        for path, key in files.items():
            if key is None and needed and _public(path) not in in_agent:
                self._ask_for(path)

    def offers(self, endpoint: Endpoint) -> list[Offer]:
        """The keys to offer, in order: the agent's, then the files', each with its certificates before it alone."""
        files = self._files(endpoint)
        named = {_public(path) for path in files}
        offers = [
            Offer(f"a key of the agent ({key.get_name()})", key)
            for key in self._of_agent(endpoint)
            if not endpoint.identities_only or key.asbytes() in named
        ]
        had = {offer.key.asbytes() for offer in offers}
        for path, key in files.items():
            if key is None:
                continue
            for certificate in (path.with_name(f"{path.name}-cert.pub"), *endpoint.certificate_files):
                with contextlib.suppress(OSError, ValueError):  # none there, or one of another key
                    offers.append(
                        Offer(_short(certificate), self._read(path, self._passphrases.get(path), certificate))
                    )
            if key.asbytes() not in had:
                offers.append(Offer(_short(path), key))
        return [offer for offer in offers if not _is_weak(offer.key, endpoint.least_rsa_bits)]

    def locked(self, endpoint: Endpoint) -> list[str]:
        """The key files that could not be offered, because nobody unlocked them."""
        return [_short(path) for path, key in self._files(endpoint).items() if key is None]

    def close(self) -> None:
        """Leave the agents."""
        with self._asking:
            for agent in self._agents.values():
                agent.close()
            self._agents.clear()

    def _files(self, endpoint: Endpoint) -> dict[Path, Any]:
        """The endpoint's key files and their keys; None for one that is locked. What is no key file is passed over."""
        found: dict[Path, Any] = {}
        for path in endpoint.identity_files:
            try:
                found[path] = self._read(path, self._passphrases.get(path), None)
            except Locked:
                found[path] = None
            except (OSError, ValueError):
                continue
        return found

    def _read(self, path: Path, passphrase: str | None, certificate: Path | None) -> Any:
        """A key, read once: hundreds of logins need the same, and unlocking one is slow on purpose."""
        if (path, certificate) not in self._loaded:
            self._loaded[path, certificate] = self._load(path, passphrase, certificate)
        return self._loaded[path, certificate]

    def _of_agent(self, endpoint: Endpoint) -> Sequence[Any]:
        path = endpoint.agent
        if path is None:
            return ()
        with self._asking:
            if path not in self._agents:
                try:
                    self._agents[path] = self._open_agent(path)
                except OSError:
                    return ()
            return self._agents[path].get_keys()

    def _ask_for(self, path: Path) -> None:
        with self._asking:
            if path in self._passphrases:
                return
            self._passphrases[path] = None  # who has no answer is not asked again
            for _ in range(TRIES):
                if not (typed := self._ask(f"passphrase of {_short(path)}: ")):
                    return
                with contextlib.suppress(Locked):
                    self._read(path, typed, None)
                    self._passphrases[path] = typed
                    return


def locked_out(endpoint: Endpoint, tried: Sequence[str], allowed: Sequence[str], locked: Sequence[str]) -> LoginError:
    """What to tell somebody whose keys were refused."""
    account = f"{endpoint.user}@{endpoint.name}"
    if allowed and "publickey" not in allowed:
        return LoginError(
            f"{account}: the server takes {' and '.join(allowed)}, and no keys; fedctl logs in with keys alone",
            hint="let its sshd take keys: `PubkeyAuthentication yes`",
        )
    if locked:
        return LoginError(
            f"{account}: refused; {', '.join(locked)} was not tried, since it is locked by a passphrase",
            hint=f"`ssh-add {locked[0]}`, or run this in a terminal, where fedctl asks for the passphrase",
        )
    offered = ", ".join(tried) or "there is no key to offer"
    hint = (
        f"`ssh-copy-id {account}`, or where its owner enrolls keys (`fedctl node enroll`) ask them to; or name another "
        "`key:` or `user:` in fed.yaml"
    )
    if endpoint.user == "root":
        hint += "; a server with `PermitRootLogin no` never lets root in"
    return LoginError(f"{account}: refused ({offered})", hint=hint)


def hung_up(endpoint: Endpoint, tried: Sequence[str]) -> LoginError:
    """What to tell somebody whose server had enough of trying keys."""
    return LoginError(
        f"{endpoint.name} hung up after {len(tried)} keys were offered",
        hint="name the right one with `key:` in fed.yaml, or IdentitiesOnly and IdentityFile in ~/.ssh/config",
    )


def unsigned(endpoint: Endpoint, name: str) -> LoginError:
    """What to tell somebody whose agent has a key and does not use it."""
    return LoginError(
        f"{endpoint.user}@{endpoint.name}: the agent does not sign with {name}",
        hint="unlock it there (`ssh-add -l` lists what it has), or name a key file with `key:` in fed.yaml",
    )


def wants_more(endpoint: Endpoint, wanted: Sequence[str]) -> LoginError:
    """What to tell somebody whose key was right and not enough."""
    return LoginError(
        f"{endpoint.name} wants more than a key of {endpoint.user}: {', '.join(wanted)}",
        hint="let its sshd take a key alone for this account (`AuthenticationMethods publickey`)",
    )


def _is_weak(key: Any, least_rsa_bits: int) -> bool:
    return "rsa" in key.get_name() and key.get_bits() < least_rsa_bits


def _public(path: Path) -> bytes | None:
    """The public half of a key file, from the file beside it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return base64.b64decode(path.with_name(path.name + ".pub").read_text().split()[1])
    return None


def _short(path: Path) -> str:
    with contextlib.suppress(ValueError, RuntimeError):
        return f"~/{path.relative_to(Path.home())}"
    return str(path)
