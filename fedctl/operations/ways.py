"""How a federation's tensors travel: the codecs that fed.yaml names, checked and put together."""

from collections.abc import Sequence
from typing import Any

from fedctl.codecs import kind_of
from fedctl.codecs.pipeline import Pipeline, Ways
from fedctl.errors import ConfigError
from fedctl.families import importable_from
from fedctl.federation import Federation, Named
from fedctl.strategies.options import from_options


def ways_of(federation: Federation) -> Ways:
    """Both ways; raises ConfigError for a codec's name or option, and for an order that makes no sense."""
    up, down = (_pipeline(many, federation) for many in (federation.codec.up, federation.codec.down))
    if not down.exact_everywhere:
        name = next(each.name for each in federation.codec.down if not _codec(each, federation).exact_everywhere)
        raise ConfigError(
            f"codec/down: {name} gives other bits on another machine, and all nodes are to have the same model",
            hint="take topk, int8 or int4 for models; it may stay in `up`",
        )
    return Ways(up=up, down=down)


def _pipeline(many: Sequence[Named], federation: Federation) -> Pipeline:
    return Pipeline.joined([(each.name, _codec(each, federation)) for each in many])


def _codec(named: Named, federation: Federation) -> Any:
    with importable_from(federation.folder):
        return from_options(kind_of(named.name), named.options, where=f"codec/{named.name}")
