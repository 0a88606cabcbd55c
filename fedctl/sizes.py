"""How many bytes models and updates will be on the line, told from the first model's file."""

import math
from pathlib import Path

from fedctl.codecs.pipeline import Pipeline
from fedctl.federation import Federation
from fedctl.forecast import Sizes
from fedctl.records import Blob
from fedctl.rundir import RunDir


def first_sizes(run: RunDir, federation: Federation, model: Blob, *, controls: bool) -> Sizes:
    """The sizes that a run's first `model` leads to, which is there; with `controls`, control variates go beside it."""
    path = run.model if federation.share.is_whole else run.round_model(0)
    up, down = forecast_sizes(path, federation)
    return Sizes(model=model.size, up=up, down=down, controls=controls)


def forecast_sizes(model: Path, federation: Federation) -> tuple[int, int]:
    """Bytes (up, down) of one update on its way here and of one model on its way to a node that has the one before.

    Where rounds share parts of the model, those of a round on the average.
    """
    from fedctl.codecs.trial import ratio

    whole = model.stat().st_size
    codec, share = federation.codec.to_json(), _share_of_rounds(model, federation)
    up, down = (
        round(share * whole * ratio(model, Pipeline.of(codec[way]))) if way in codec else round(share * whole)
        for way in ("up", "down")
    )
    if federation.privacy.is_secure:
        return round(share * _masked(model, federation)), down
    return up, down


def _masked(model: Path, federation: Federation) -> float:
    """Bytes of a masked update of a whole model, on the average: narrow ones begin with the second round."""
    from fedctl.header import read_header

    values = sum(spec.count for spec in read_header(model).spec.values() if spec.is_floating)
    narrow = federation.rounds - 1 if federation.codec.up else 0
    return values * (4 - 2 * narrow / federation.rounds)


def _share_of_rounds(model: Path, federation: Federation) -> float:
    """How much of a model a round shares, on the average."""
    if not federation.share.is_scheduled:
        return 1.0
    from fedctl.weights import Weights

    sizes = {name: spec.size for name, spec in Weights.open(model).spec.items()}
    due = [federation.share.due(sizes, number) for number in range(1, federation.rounds + 1)]
    return math.fsum(sizes[name] for names in due for name in names) / (sum(sizes.values()) * federation.rounds)
