"""What `fed.yaml` means, as frozen dataclasses: what should be.

Pure and standard library only. `topology` reads the file into these; everything else takes them from there and never
sees YAML. All options of a strategy or a local rule are kept as plain values here and are checked by its own dataclass.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedctl.privacy import OPEN, Privacy
from fedctl.share import EVERYTHING, Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitor:
    """The metric that decides which model is best."""

    metric: str = "val_loss"
    mode: Literal["min", "max"] = "min"


@dataclass(frozen=True, slots=True, kw_only=True)
class Callback:
    """A Lightning callback of the user's own: `file.py:Class`, and its arguments."""

    target: str
    args: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a node is told."""
        return {"class": self.target, "args": dict(self.args)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """The user's own code: `file.py:Class` of a LightningModule and a LightningDataModule, and their arguments.

    Unless `reset_optimizer`, a node's optimizers go on from round to round.
    """

    model: str
    data: str
    model_args: Mapping[str, Any] = field(default_factory=dict)
    data_args: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    callbacks: tuple[Callback, ...] = ()
    reset_optimizer: bool = True
    monitor: Monitor = Monitor()

    @property
    def targets(self) -> tuple[str, ...]:
        """Every `file.py:Class` that a node imports."""
        return (self.model, self.data, *(each.target for each in self.callbacks))


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A member of a family and its options, as in `{name: fedavg, ...}`."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Codecs:
    """How tensors travel: the codecs of updates, and those of models on their way to the nodes, in their order."""

    up: tuple[Named, ...] = ()
    down: tuple[Named, ...] = ()

    @property
    def packages(self) -> tuple[str, ...]:
        """What a node's Python needs for them, beside what every task does."""
        return ("zstandard",) if "zstd" in {each.name for each in (*self.up, *self.down)} else ()

    def to_json(self) -> dict[str, Any]:
        """As a node is told; nothing where tensors travel as they are."""
        ways = {"up": self.up, "down": self.down}
        return {way: [{"name": each.name, **each.options} for each in many] for way, many in ways.items() if many}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetune:
    """A training of each node's own after the last round, for so many epochs; `model_args` go before the task's."""

    epochs: int = 1
    model_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When a round closes.

    In `mode` synchronous, `cohort` and `quorum` are a share (a float in (0, 1]) or a number of nodes (an int); the
    quorum is of the cohort. `overprovision` times the cohort is asked, and the first updates of a cohort's number are
    taken. `deadline_s` is None where a round may take as long as it takes; with `partial`, a node hands in what it has
    done shortly before. `attempts` counts the first one; `patience_s` is how long a node that went away is waited for
    (None: for ever). In `mode` buffered, a round takes the first `buffer` updates, whichever model they began from, and
    the quorum is of these. At most `concurrency` nodes train at a time (None: all), each until its own deadline. An
    update that is some models behind counts by `staleness`, and not at all beyond `max_staleness`.
    """

    mode: Literal["synchronous", "buffered"] = "synchronous"
    cohort: float | int = 1.0
    overprovision: float = 1.0
    quorum: float | int = 0.8
    deadline_s: float | None = None
    partial: bool = False
    attempts: int = 2
    patience_s: float | None = 300.0
    buffer: int | None = None
    concurrency: int | None = None
    staleness: Named = Named(name="polynomial")
    max_staleness: int = 20

    @property
    def lag(self) -> int:
        """How many models behind the newest one an update may have begun."""
        return self.max_staleness if self.mode == "buffered" else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an update may be at most; None is without a limit.

    `norm` is how far it may lie from the model that it was trained from, as a multiple of that model's norm plus 1;
    `examples` is how many it may claim to have been trained on.
    """

    norm: float | None = 1000.0
    examples: int | None = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """When a node may be used, by its own clock and its owner's word.

    `hours` are spans of minutes of a day, from and up to; one that ends before it begins goes past midnight. `days` are
    numbers from 0 for Monday, of the day on which a span begins. `command` is a program on the node and its arguments:
    status 0 is yes.
    """

    hours: tuple[tuple[int, int], ...] = ()
    days: tuple[int, ...] = ()
    command: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As a node's agent is told."""
        return {"hours": [list(span) for span in self.hours], "days": list(self.days), "command": list(self.command)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One participant.

    `home` is where fedctl keeps its files there (None: ~/.fedctl), `wheelhouse` a folder of wheels here for a node that
    reaches no package index. `slots` bounds how many tasks its host runs at once (None: one a core), `threads` torch's
    own threads in a task (0: torch's choice); `when` is None for a node that may always be used.

    In bits a second, `bandwidth_bps` is what fedctl may use of its line each way, and `uplink_bps` and `downlink_bps`
    are what that line gives, from the node and to it, by its owner's word (None: no limit, or nobody said).
    """

    name: str
    host: str = "local"
    user: str | None = None
    port: int | None = None
    key: str | None = None
    jump: str | None = None
    python: str | None = None
    wheelhouse: str | None = None
    home: str | None = None
    accelerator: str = "auto"
    devices: int | str = "auto"
    slots: int | None = None
    threads: int = 0
    bandwidth_bps: float | None = None
    uplink_bps: float | None = None
    downlink_bps: float | None = None
    when: When | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def machine(self) -> tuple[object, ...]:
        """The same for nodes that are on one machine, as far as fed.yaml tells, and so on one line."""
        return (self.host, self.port, self.jump)

    @property
    def address(self) -> tuple[object, ...]:
        """The same for nodes that share a machine, a user and a Python there, and so what is sent to it."""
        return (self.host, self.user, self.port, self.key, self.jump, self.python, self.wheelhouse, self.home)


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """One federation, whole and checked. `folder` holds fed.yaml and the user's code.

    `local` is what a node's training follows beyond the user's code, `finetune` what each node does for itself after
    the last round (None: nothing).
    """

    name: str
    folder: Path
    task: TaskSpec
    nodes: tuple[Node, ...]
    seed: int = 0
    rounds: int = 10
    compare: bool = False
    strategy: Named = Named(name="fedavg")
    local: Named | None = None
    share: Share = EVERYTHING
    finetune: Finetune | None = None
    codec: Codecs = Codecs()
    privacy: Privacy = OPEN
    schedule: Schedule = Schedule()
    limits: Limits = Limits()

    @property
    def packages(self) -> tuple[str, ...]:
        """What a node's Python needs beside what every task does."""
        return (*self.codec.packages, *self.privacy.packages)

    @property
    def keeps(self) -> bool:
        """Whether a node may have to go on with what an earlier training of its left on it."""
        return (
            self.share != EVERYTHING or bool(self.codec.up) or not self.task.reset_optimizer or self.local is not None
        )

    def node(self, name: str) -> Node:
        """The node of that name; raises KeyError."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)


def needed(share: float, whole: int) -> int:
    """How many of `whole` a share (float) or a count (int) asks for: at least one, at most all."""
    wanted = math.ceil(share * whole - 1e-9) if isinstance(share, float) else share
    return max(1, min(whole, wanted))
