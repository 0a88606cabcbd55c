"""The owner's terms: what a coordinator's key may ask of this node, as `policy.yaml` says it. Pure.

What is not said is as its default has it: code and environments wait for the owner, no path is open, nothing but
tensors and metrics leaves. Named tuples, since a guard starts with every connection and dataclasses take their time.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

MODES = ("central", "distributed", "local")
"""Where the noise of differential privacy is added; see fed.yaml's `privacy`."""


class Data(NamedTuple):
    """Paths that tasks may name, with all that is below them."""

    paths: Tuple[str, ...] = ()


class Tensors(NamedTuple):
    """Tensors that may leave: those that match a pattern of `only` (empty: all) and none of `kept`."""

    only: Tuple[str, ...] = ()
    kept: Tuple[str, ...] = ()

    def covers(self, name: str) -> bool:
        """Whether the tensor of that name may leave."""
        return (not self.only or matches(name, self.only)) and not matches(name, self.kept)


class Leave(NamedTuple):
    """What may leave this node; `metrics` are patterns of names, None for all."""

    tensors: Tensors = Tensors()
    metrics: Optional[Tuple[str, ...]] = None
    logs: bool = False


class SecureAggregation(NamedTuple):
    """Whether updates leave masked alone, and of how many nodes a sum has to be at `least`."""

    required: bool = False
    least: int = 3


class DifferentialPrivacy(NamedTuple):
    """Trainings have to be with noise of one of these `modes`; all together spend at most `epsilon`."""

    epsilon: float
    modes: Tuple[str, ...] = ("distributed", "local")
    delta: float = 1e-5


class Limits(NamedTuple):
    """What trainings may take: processors, bytes of memory a process, GPUs by number, bytes of disk; None: all."""

    cpus: Optional[int] = None
    memory: Optional[int] = None
    gpus: Optional[Tuple[int, ...]] = None
    disk: Optional[int] = None


class Policy(NamedTuple):
    """All of the terms. Spans of `hours` are in minutes of a day, `days` count from 0 for Monday; empty: always."""

    code: str = "approve"
    environments: str = "approve"
    pythons: Tuple[str, ...] = ()
    data: Data = Data()
    commands: Tuple[str, ...] = ()
    leave: Leave = Leave()
    secure_aggregation: SecureAggregation = SecureAggregation()
    differential_privacy: Optional[DifferentialPrivacy] = None
    rounds: Optional[int] = None
    hours: Tuple[Tuple[int, int], ...] = ()
    days: Tuple[int, ...] = ()
    limits: Limits = Limits()
    network: str = "any"
    files: str = "any"

    @property
    def required(self) -> List[str]:
        """What an update has to have before it leaves."""
        is_required: Dict[str, bool] = {
            "secure_aggregation": self.secure_aggregation.required,
            "differential_privacy": self.differential_privacy is not None,
        }
        return [name for name, required in is_required.items() if required]


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name matches one of the shell's patterns, as a whole."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
