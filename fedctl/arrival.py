"""An update that has come from a node: decoded to the tensors that it stands for, and checked against its model.

Nothing in it is believed. Reads and writes tensor by tensor.
"""

from dataclasses import dataclass
from pathlib import Path

from fedctl.codecs.pipeline import Pipeline
from fedctl.errors import ModelError
from fedctl.records import Blob
from fedctl.share import Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """What is known of an update beforehand.

    `model` is the file of the one that it was trained from, of which a `round` takes what `share` says; the `pipeline`
    wrote it with that `seed`. With `controls`, these may stand beside the weights. `farthest` is as `check_update`
    takes it.
    """

    model: Path
    share: Share
    round: int
    pipeline: Pipeline
    seed: int
    controls: bool
    farthest: float | None

    @property
    def is_coded(self) -> bool:
        """Whether what travels is not the update itself."""
        return not self.pipeline.is_plain or self.share.change > 0

    def decode(self, wire: Path, update: Path) -> Blob:
        """Write the update that travelled as `wire`, and remove that; raises ModelError where it is no such update."""
        from fedctl.codecs.wire import read
        from fedctl.division import due
        from fedctl.weights import Weights, controls_of, save

        base = due(Weights.open(self.model), self.share, self.round)
        beside = controls_of(base.spec) if self.controls else None
        update.parent.mkdir(parents=True, exist_ok=True)
        try:
            came = read(
                wire,
                self.pipeline,
                base.spec,
                base,
                seed=self.seed,
                beside=beside,
                least=self.share.change,
                what="its update",
            )
            return save(update, came)
        finally:
            wire.unlink()

    def check(self, update: Path) -> None:
        """Raises ModelError, naming the tensor, for an update that is not sound."""
        from fedctl.division import due
        from fedctl.soundness import check_update
        from fedctl.weights import Weights

        base = due(Weights.open(self.model), self.share, self.round)
        try:
            found = Weights.open(update, what="its update")
            check_update(found, base, what="its update", farthest=self.farthest, controls=self.controls)
        except ModelError:
            update.unlink()
            raise
