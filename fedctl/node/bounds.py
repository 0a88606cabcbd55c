"""What a node's owner asks of a task beside what the coordinator does: `owner.json` in the task's folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "owner.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """An owner's bounds; none where there is no owner's file.

    `identity` is the file of the node's key in secure aggregation, `peers` that of the fingerprints that its owner
    knows, and `least` the smallest cohort whose sum may be learnt. `epsilon` at `delta` is what all trainings with
    noise may spend on this node in all, of which `spent` has the (noise, rate, steps) of each so far.
    """

    identity: Path | None = None
    peers: Path | None = None
    least: int | None = None
    epsilon: float | None = None
    delta: float | None = None
    spent: tuple[tuple[float, float, int], ...] = ()

    @classmethod
    def of(cls, folder: Path) -> "Bounds":
        """Those of the task in that folder."""
        try:
            said: Mapping[str, Any] = json.loads((folder / FILE).read_bytes())
        except FileNotFoundError:
            return cls()
        return cls(
            identity=Path(said["identity"]) if said.get("identity") else None,
            peers=Path(said["peers"]) if said.get("peers") else None,
            least=said.get("least"),
            epsilon=said.get("epsilon"),
            delta=said.get("delta"),
            spent=tuple((float(noise), float(rate), int(steps)) for noise, rate, steps in said.get("spent", ())),
        )
