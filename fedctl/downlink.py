"""A model on its way to nodes that have the one before: its difference to that, and the model that this makes there.

What the codecs lose is lost to the coordinator too: the round's model is the one that every node can make, to the bit,
and what was lost of the aggregate goes with the next difference.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedctl.codecs.pipeline import Pipeline
from fedctl.codecs.wire import Outgoing, read
from fedctl.records import Blob
from fedctl.soundness import check_finite
from fedctl.weights import Lazy, Weights, save

if TYPE_CHECKING:
    from torch import Tensor

UNCHANGED = sys.float_info.min
"""The share of a tensor's norm that is less than any change: what has none need not travel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortened:
    """A model, and its difference to the one before as a file that travels."""

    model: Blob
    difference: Blob


def shorten(
    made: Path,
    *,
    pipeline: Pipeline,
    seed: int,
    previous: Path,
    residual: Path,
    model_out: Path,
    difference_out: Path,
    residual_out: Path,
) -> Shortened:
    """Write the difference of the model in `made` to the `previous` one, and the model that nodes make of the two.

    `seed` is that of the previous model, as `seed_of_model` has it. `residual` has what the difference before failed to
    bring over, where there is such a file. Raises ModelError, also where values near the end of their type's range
    become infinite.
    """
    before = Weights.open(previous)
    outgoing = Outgoing(
        pipeline=pipeline,
        tensors=Weights.open(made),
        base=before,
        residual=Weights.open(residual) if residual.exists() else {},
        seed=seed,
        least=UNCHANGED,
    )
    difference = outgoing.save(difference_out, before.spec)
    came = read(difference_out, pipeline, before.spec, before, seed=seed, least=UNCHANGED)

    def checked(name: str) -> "Tensor":
        tensor = came[name]
        check_finite(name, tensor, what="the model that nodes make of its difference")
        return tensor

    model = save(model_out, Lazy(came.spec, checked))
    if pipeline.is_lossy:
        save(residual_out, outgoing.lost)
    return Shortened(model=model, difference=difference)
