"""A model in two parts: what the federation shares, and the rest, which stays with each node.

The coordinator keeps the rest as the first model had it, and its own model is the shared part with that.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedctl.errors import ConfigError
from fedctl.records import Blob
from fedctl.share import Share

if TYPE_CHECKING:
    from torch import Tensor

    from fedctl.weights import Lazy, Weights


WHOLE = "a pattern covers a whole name, as in `*lora_*` or `head.*`; there are"


def check_share(whole: Path, share: Share) -> None:
    """Raises ConfigError where a pattern matches no tensor of a model, nothing is shared, or a fragment is empty."""
    from fedctl.header import read_header

    spec = read_header(whole).spec
    names = list(spec)
    if idle := share.idle(names):
        raise ConfigError(f"share: no tensor of the model matches `{idle[0]}`", hint=f"{WHOLE}: {_some(names)}")
    parts = share.parts({name: one.size for name, one in spec.items() if share.covers(name)})
    if not parts:
        raise ConfigError("share: no tensor of the model is left to share", hint=f"{WHOLE}: {_some(names)}")
    if len(set(parts.values())) < share.fragments:
        most = len({name.rpartition(".")[0] for name in parts})
        raise ConfigError(
            f"strategy: a model of {most} modules cannot be divided into {share.fragments} fragments",
            hint=f"give `fragments: {most}` at most",
        )


def divide(whole: Path, share: Share, model: Path, rest: Path) -> tuple[Blob, Blob]:
    """Write the shared part of the model in `whole` to `model`, and the rest to `rest`."""
    from fedctl.weights import Weights, part, save

    weights = Weights.open(whole)
    shared = [name for name in weights if share.covers(name)]
    kept = [name for name in weights if not share.covers(name)]
    return save(model, part(weights, shared)), save(rest, part(weights, kept))


def due(model: "Weights", share: Share, round: int) -> "Lazy":
    """Of a model's shared part the tensors that a round shares."""
    from fedctl.weights import part

    names = share.due({name: spec.size for name, spec in model.spec.items()}, round)
    return part(model, [name for name in model if name in names])


def united(model: Path, rest: Path) -> "Mapping[str, Tensor]":
    """The tensors of both parts; those of `model` alone where there is no rest."""
    from fedctl.weights import Weights, joined

    shared = Weights.open(model)
    return joined(shared, Weights.open(rest)) if rest.exists() else shared


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
