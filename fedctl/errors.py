"""The errors that fedctl shows to people, as one tree.

FedctlError            1  anything unforeseen derives from no class here and is a bug
├── UsageError         2  the command line asks for something that cannot be
├── ConfigError        3  fed.yaml, or the code it names, is wrong
├── NodeError          4  one node cannot do what it was asked
│   ├── ConnectionLost     the line to the agent broke; the work on the node may still go on
│   │   └── Unreachable    no line could be had: name, network, a server that does not answer
│   ├── HostKeyError       the server's key is unknown, or not the one that is known
│   ├── LoginError         the server was reached and lets nobody in
│   ├── ProtocolError      what the node sends is not what was agreed; to try again at once is no use
│   ├── Declined           the node's owner does not want it used now
│   └── InstallError       an environment could not be made
├── RunError           5  the run as a whole cannot go on
├── ModelError         6  a model or an update is not what it must be
└── StateError         7  what is on disk forbids it: locked, not found, damaged

A message says what happened, to what, in lower case and without a full stop; the hint is the next thing to type.
An error never prints itself: `cli.main` shows it, once.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple


def closest(wrong: str, known: Iterable[str]) -> str | None:
    """Which of the known names was probably meant; None where none is near."""
    import difflib  # here, so that commands which go well do not wait for it

    return next(iter(difflib.get_close_matches(wrong, list(known), n=1)), None)


def suggestion(wrong: str, known: Iterable[str], otherwise: str) -> str:
    """The hint for a name that is not known: the one that was probably meant, else `otherwise`."""
    near = closest(wrong, known)
    return f"did you mean `{near}`?" if near else otherwise


class FedctlError(Exception):
    """The base of every error that is shown as a sentence."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(FedctlError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class ConfigError(FedctlError):
    """The configuration, or the user's code that it names, is wrong."""

    exit_code = 3


class NodeError(FedctlError):
    """One node cannot do what it was asked."""

    exit_code = 4


class ConnectionLost(NodeError):
    """The line to a node's agent broke; work that was started there goes on."""


class Unreachable(ConnectionLost):
    """No line to the node could be had; `stage` says what failed: its name, the network, or the server's greeting."""

    def __init__(
        self, message: str, *, hint: str | None = None, stage: Literal["name", "network", "greeting"] = "network"
    ) -> None:
        super().__init__(message, hint=hint)
        self.stage = stage


class OfferedKey(NamedTuple):
    """A host key that a server showed and that nobody has refused: `blob` in base64, `name` as known_hosts has it."""

    name: str
    type: str
    blob: str
    fingerprint: str


class HostKeyError(NodeError):
    """The server's key is unknown, or it is not the one that is known; `offered` is the unknown one, to be accepted."""

    def __init__(self, message: str, *, hint: str | None = None, offered: OfferedKey | None = None) -> None:
        super().__init__(message, hint=hint)
        self.offered = offered


class LoginError(NodeError):
    """The server was reached, and its key is right, but it lets nobody in."""


class ProtocolError(NodeError):
    """What a node sends is not what it was asked for, or too much: it is broken, or it lies."""


class Declined(NodeError):
    """The node is not to be used now, by its owner's word; it may be asked again after `seconds` (0: unknown)."""

    def __init__(self, message: str, *, hint: str | None = None, seconds: float) -> None:
        super().__init__(message, hint=hint)
        self.seconds = seconds


class InstallError(NodeError):
    """A node's environment could not be made; `detail` is what the installer said last, in lines."""

    def __init__(self, message: str, *, hint: str | None = None, detail: str = "") -> None:
        super().__init__(message, hint=hint)
        self.detail = detail


class RunError(FedctlError):
    """The run as a whole cannot go on."""

    exit_code = 5


class ModelError(FedctlError):
    """A model or an update is not what it must be."""

    exit_code = 6


class StateError(FedctlError):
    """What is on disk forbids it: a run that is locked, unknown or damaged."""

    exit_code = 7
