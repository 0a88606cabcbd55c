"""The algorithm that fed.yaml names, checked as a whole before anything starts."""

from fedctl.federation import Federation
from fedctl.node.rules import kind_of
from fedctl.strategies import Strategy, build
from fedctl.strategies.options import from_options


def build_algorithm(federation: Federation) -> Strategy:
    """The strategy; raises ConfigError for a name, a type or a range that is wrong in it or in the local rule."""
    if federation.local:
        from_options(kind_of(federation.local.name), federation.local.options, where="local")
    return build(federation.strategy, folder=federation.folder)
