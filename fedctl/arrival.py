"""An update that has come from a node: decoded to the tensors that it stands for, and checked against its model.

Nothing in it is believed. Reads and writes tensor by tensor.
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedctl.codecs.pipeline import Pipeline
from fedctl.errors import ModelError
from fedctl.records import Blob
from fedctl.share import Share

if TYPE_CHECKING:
    from fedctl.header import TensorSpec
    from fedctl.weights import Lazy

SLACK = 1 << 20
"""How many bytes an update may have beyond what its tensors take: room for a header of another making."""
_DECODING = threading.BoundedSemaphore(min(4, os.cpu_count() or 1))
"""Each decoding holds a tensor in a few forms; many nodes may hand in at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """What is known of an update beforehand.

    `model` is the file of the one that it was trained from, of which a `round` takes what `share` says; the `pipeline`
    wrote it with that `seed`. With `controls`, these may stand beside the weights. `farthest` is as `check_update`
    takes it. A masked update is one `row` of whole numbers, of which nothing more can be told.
    """

    model: Path
    share: Share
    round: int
    pipeline: Pipeline
    seed: int
    controls: bool
    farthest: float | None
    row: "TensorSpec | None" = None

    @property
    def is_coded(self) -> bool:
        """Whether what travels is not the update itself."""
        return self.row is None and self.pipeline.is_coded(self.share.change)

    def most(self, model: int) -> int:
        """How many bytes such an update may have, of a model of so many: what its parts take, or that twice."""
        from fedctl.weights import controls_of

        if not self.is_coded:
            return 2 * model + SLACK
        base = self._base().spec
        beside = controls_of(base) if self.controls else {}
        layouts = [self.pipeline.layout(name, spec, has_base=True) for name, spec in base.items()]
        layouts += [self.pipeline.layout(name, spec, has_base=False) for name, spec in beside.items()]
        return max(2 * model, sum(part.size for layout in layouts for part in layout)) + SLACK

    def decode(self, wire: Path, update: Path) -> Blob:
        """Write the update that travelled as `wire`, and remove that; raises ModelError where it is no such update."""
        from fedctl.codecs.wire import read
        from fedctl.weights import controls_of, save

        base = self._base()
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
            with _DECODING:
                return save(update, came)
        finally:
            wire.unlink()

    def check(self, update: Path) -> None:
        """Raises ModelError, naming the tensor, for an update that is not sound."""
        from fedctl.soundness import check_update
        from fedctl.weights import Weights

        if self.row is not None:
            _check_masked(update, self.row)
            return

        try:
            found = Weights.open(update, what="its update")
            check_update(found, self._base(), what="its update", farthest=self.farthest, controls=self.controls)
        except ModelError:
            update.unlink()
            raise

    def _base(self) -> "Lazy":
        """Of the model that the update was trained from what the round shares."""
        from fedctl.division import due
        from fedctl.weights import Weights

        return due(Weights.open(self.model), self.share, self.round)


def _check_masked(update: Path, row: "TensorSpec") -> None:
    """Remove, with a ModelError, a file that is no such row."""
    from fedctl.masked import VECTOR
    from fedctl.weights import Weights

    try:
        is_right = Weights.open(update, what="its update").spec == {VECTOR: row}
    except ModelError:
        update.unlink()
        raise
    if not is_right:
        update.unlink()
        raise ModelError("its update is no masked one of this model")
