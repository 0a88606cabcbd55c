"""What `plan` asks for, in the imperative: the coordinator performs each action whose `key` is not yet in flight.

Every action is idempotent under its key and ends in an event.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedctl.records import Blob, Kind, TaskKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """Reach a node and make it ready."""

    node: str

    @property
    def key(self) -> str:
        return f"prepare/{self.node}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Perform:
    """Have a node do a task on these models; it goes on with what its training `kept` has left on it (None: nothing).

    `steps` has the nodes that have done each step of a round with masked updates so far, and `spent` noise, rate and
    steps of each training with noise that the node has done before.
    `previous` is the model that a `DIFFERENCE` among the models leads on from. `passes` multiplies the epochs (alone,
    all rounds are one task). After `seconds` the node hands in what it has done; None lets it come to its end.
    """

    task: TaskKey
    models: Mapping[str, Blob] = field(default_factory=dict)
    previous: Blob | None = None
    passes: int = 1
    kept: TaskKey | None = None
    seconds: float | None = None
    steps: Mapping[Kind, tuple[str, ...]] = field(default_factory=dict)
    spent: tuple[tuple[float, float, int], ...] = ()

    @property
    def key(self) -> str:
        return str(self.task)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Stop a task that is of no use any more."""

    task: TaskKey
    reason: str

    @property
    def key(self) -> str:
        return f"cancel/{self.task}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRound:
    """Open a round with this cohort; `wanted` updates close it, and it cannot close without a `quorum`.

    Updates that began up to `max_staleness` rounds earlier count in it. In a `secure` one updates are masked.
    """

    round: int
    nodes: tuple[str, ...]
    wanted: int
    quorum: int
    max_staleness: int = 0
    secure: bool = False

    @property
    def key(self) -> str:
        return f"open/{self.round}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WidenRound:
    """Add nodes to a round whose cohort cannot reach the quorum, or where more may train now."""

    round: int
    nodes: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"widen/{self.round}/{'/'.join(self.nodes)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseStep:
    """Go on to the next step of a round with masked updates, with these nodes."""

    round: int
    step: Kind
    nodes: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"step/{self.round}/{self.step}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """Make the updates of these contributors the next model."""

    round: int
    contributors: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"aggregate/{self.round}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Stop here and wait for a manual aggregation."""

    round: int

    @property
    def key(self) -> str:
        return f"hold/{self.round}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """All is done; or no more can be, for the `reason`."""

    reason: str = ""
    key: str = "finish"


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """The run cannot go on."""

    reason: str
    key: str = "give up"


Action = Prepare | Perform | Cancel | OpenRound | WidenRound | CloseStep | Aggregate | Hold | Finish | GiveUp
