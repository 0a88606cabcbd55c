"""The errors that fedctl shows to people, as one tree.

FedctlError            1  anything unforeseen derives from no class here and is a bug
├── UsageError         2  the command line asks for something that cannot be
├── ConfigError        3  fed.yaml, or the code it names, is wrong
├── NodeError          4  one node cannot do what it was asked
│   └── ConnectionLost     the line to the agent broke; the work on the node may still go on
├── RunError           5  the run as a whole cannot go on
├── ModelError         6  a model or an update is not what it must be
└── StateError         7  what is on disk forbids it: locked, not found, damaged

A message says what happened, to what, in lower case and without a full stop; the hint is the next thing to type.
An error never prints itself: `cli.main` shows it, once.
"""


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


class RunError(FedctlError):
    """The run as a whole cannot go on."""

    exit_code = 5


class ModelError(FedctlError):
    """A model or an update is not what it must be."""

    exit_code = 6


class StateError(FedctlError):
    """What is on disk forbids it: a run that is locked, unknown or damaged."""

    exit_code = 7
