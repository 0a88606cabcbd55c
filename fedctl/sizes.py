"""How many bytes models and updates will be on the line, told from the first model's file."""

from pathlib import Path

from fedctl.federation import Federation
from fedctl.forecast import Sizes
from fedctl.records import Blob
from fedctl.rundir import RunDir


def first_sizes(run: RunDir, federation: Federation, model: Blob, *, controls: bool) -> Sizes:
    """The sizes that a run's first `model` leads to, which is there; with `controls`, control variates go beside it."""
    path = run.model if federation.share.is_whole else run.round_model(0)
    up, down = forecast_sizes(path, federation)
    return Sizes(model=model.size, up=up, down=down, controls=controls)


def forecast_sizes(model: Path, federation: Federation) -> tuple[int, int]:  # noqa: ARG001  (raw, whatever the codec)
    """Bytes (up, down) of one update on its way here and of one model on its way to a node that has the one before."""
    size = model.stat().st_size
    return size, size
