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
from typing import Any

from fedctl.errors import LoginError
from fedctl.transports.sshconfig import Endpoint

TRIES = 3


class Locked(Exception):
    """A key file that needs a passphrase, or another one."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A key and how people call it."""

    name: str
    key: Any


def ask_on_terminal(prompt: str) -> str | None:
    """What is typed, unseen; None where there is no terminal to ask on."""
    try:
        with Path("/dev/tty").open("rb"):
            pass
    except OSError:
        return None
    return getpass.getpass(prompt)


class Keyring:
    """The keys of this process: `load` reads a file, `agent_keys` lists those of the agent behind a socket."""

    def __init__(
        self,
        load: Callable[[Path, str | None], Any],
        agent_keys: Callable[[str], Sequence[Any]],
        ask: Callable[[str], str | None] = ask_on_terminal,
    ) -> None:
        self._load = load
        self._agent_keys = agent_keys
        self._ask = ask
        self._asking = threading.Lock()
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
        """The keys to offer, in order: the agent's, then the files', each once."""
        files = self._files(endpoint)
        named = {_public(path) for path in files}
        offers = [
            Offer(f"a key of the agent ({key.get_name()})", key)
            for key in self._of_agent(endpoint)
            if not endpoint.identities_only or key.asbytes() in named
        ]
        had = {offer.key.asbytes() for offer in offers}
        for path, key in files.items():
            if key is not None and (key.asbytes() not in had or key.public_blob is not None):
                offers.append(Offer(_short(path), key))
        return offers

    def locked(self, endpoint: Endpoint) -> list[str]:
        """The key files that could not be offered, because nobody unlocked them."""
        return [_short(path) for path, key in self._files(endpoint).items() if key is None]

    def _files(self, endpoint: Endpoint) -> dict[Path, Any]:
        """The endpoint's key files and their keys; None for one that is locked. What is no key file is passed over."""
        found: dict[Path, Any] = {}
        for path in endpoint.identity_files:
            try:
                found[path] = self._load(path, self._passphrases.get(path))
            except Locked:
                found[path] = None
            except (OSError, ValueError):
                continue
        return found

    def _of_agent(self, endpoint: Endpoint) -> Sequence[Any]:
        return self._agent_keys(endpoint.agent) if endpoint.agent else ()

    def _ask_for(self, path: Path) -> None:
        with self._asking:
            if path in self._passphrases:
                return
            self._passphrases[path] = None  # who has no answer is not asked again
            for _ in range(TRIES):
                if not (typed := self._ask(f"passphrase of {_short(path)}: ")):
                    return
                with contextlib.suppress(Locked):
                    self._load(path, typed)
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
    hint = f"`ssh-copy-id {account}`, or name another `key:` or `user:` in fed.yaml"
    if endpoint.user == "root":
        hint += "; a server with `PermitRootLogin no` never lets root in"
    return LoginError(f"{account}: refused ({offered})", hint=hint)


def _public(path: Path) -> bytes | None:
    """The public half of a key file, from the file beside it."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return base64.b64decode(path.with_name(path.name + ".pub").read_text().split()[1])
    return None


def _short(path: Path) -> str:
    with contextlib.suppress(ValueError, RuntimeError):
        return f"~/{path.relative_to(Path.home())}"
    return str(path)
