"""What a federation promises about its updates: that none is read alone, that noise hides each one, that none is long.

Pure and standard library only: fed.yaml is read into these, and a node is told of them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

DpMode = Literal["central", "distributed", "local"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureAggregation:
    """Masked updates, of which the coordinator learns the sum alone.

    A node's secrets can be brought back by a share `threshold` of its neighbours, in (0.5, 1]. In a cohort of up to 32
    all are neighbours; in a larger one each node has so many `neighbours`, 2 log2 of its size at least (None: as many
    as its size asks for). No value of an update may lie further than `range` from the model's; beyond, it is cut off.
    Of a node's examples no more than `examples` count. Nodes have `patience_s` seconds for each of the steps before and
    after the training.
    """

    threshold: float = 0.7
    neighbours: int | None = None
    range: float = 8.0
    examples: int = 65_536
    patience_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveClip:
    """A norm that follows the updates': a share `quantile` of them should be no longer.

    It moves by at most the factor e**`rate` a round; the count of those that are no longer gets noise of standard
    deviation `noise` (None: a twentieth of the cohort).
    """

    quantile: float = 0.5
    rate: float = 0.2
    noise: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferentialPrivacy:
    """Noise for an (epsilon, delta) guarantee.

    `mode` says where it is added: by the coordinator to the mean (central), by every node to its own masked update
    (distributed), or by every node to the gradient of each step (local). `noise` is its standard deviation as a
    multiple of `clip`, the L2 norm that an update, or the gradient of one example, is cut down to; where it is
    `adaptive`, that is the first round's. The run ends before it would spend more than `epsilon` (None: it never does
    for that).
    """

    mode: DpMode
    noise: float
    clip: float
    adaptive: AdaptiveClip | None = None
    delta: float = 1e-5
    epsilon: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Privacy:
    """All that is promised; nothing by default. Nodes cut their updates down to the L2 norm `clip` (None: they do not).

    A guarantee of differential privacy per node has a `clip` of its own.
    """

    clip: float | None = None
    secure_aggregation: SecureAggregation | None = None
    differential_privacy: DifferentialPrivacy | None = None

    @property
    def mode(self) -> DpMode | None:
        """Where noise is added, if any is."""
        return self.differential_privacy.mode if self.differential_privacy else None

    @property
    def is_secure(self) -> bool:
        """Whether updates are masked."""
        return self.secure_aggregation is not None

    @property
    def is_counted_by_node(self) -> bool:
        """Whether the guarantee is about a whole node's data, each node counting as one."""
        return self.mode in ("central", "distributed")

    @property
    def takes_a_mean(self) -> bool:
        """Whether a strategy is given one mean of the round's updates, and no single one."""
        return self.is_secure or self.is_counted_by_node

    @property
    def norm(self) -> float | None:
        """The L2 norm that a node cuts its update down to before it leaves (None: it does not)."""
        dp = self.differential_privacy
        if dp and self.is_secure and self.is_counted_by_node:
            return dp.clip
        return self.clip

    @property
    def packages(self) -> tuple[str, ...]:
        """What a node's Python needs, beside what every task does."""
        is_local = self.mode == "local"
        return (*(("cryptography",) if self.is_secure or is_local else ()), *(("opacus",) if is_local else ()))

    def to_json(self) -> dict[str, Any]:
        """As a node is told; nothing where nothing is promised."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Privacy":
        """Of what `to_json` gave."""
        secure, dp = value.get("secure_aggregation"), value.get("differential_privacy")
        if dp and dp["adaptive"]:
            dp = {**dp, "adaptive": AdaptiveClip(**dp["adaptive"])}
        return cls(
            clip=value.get("clip"),
            secure_aggregation=SecureAggregation(**secure) if secure else None,
            differential_privacy=DifferentialPrivacy(**dp) if dp else None,
        )


OPEN = Privacy()
"""Nothing is promised: the coordinator sees every update as it is."""
