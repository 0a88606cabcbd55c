"""What a run will carry over its lines, and how long they need for it: arithmetic over fed.yaml and a model's size.

Pure. It counts the models and updates of a run without failures: each machine gets every model once, because its nodes
score each, and each round brings as many updates as it takes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fedctl import fleet
from fedctl.federation import Federation, Node
from fedctl.traffic import Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes: a whole model, what a model is `down` to a node that has the one before, and an update on its way `up`.

    `controls` says that control variates go beside both.
    """

    model: int
    down: int
    up: int
    controls: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LineForecast:
    """One machine's line and the nodes behind it.

    `round` is a round of many, `run` all of them with the scoring of the last model. `line_s` is how long the whole run
    keeps the line busy at least, in seconds: None where fed.yaml does not say how fast it is.
    """

    nodes: tuple[str, ...]
    round: Traffic
    run: Traffic
    line_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """All lines, and what they carry together. `line_s` is the sum of what each round's slowest line takes."""

    lines: tuple[LineForecast, ...]
    round: Traffic
    run: Traffic
    line_s: float | None


def forecast(federation: Federation, sizes: Sizes) -> Forecast:
    """What a run of this federation will carry."""
    machines: dict[tuple[object, ...], list[Node]] = {}
    for node in federation.nodes:
        machines.setdefault(node.machine, []).append(node)
    lines = [_line(federation, sizes, nodes) for nodes in machines.values()]
    slowest = [max(stage) for stage in zip(*(each.stages_s for each in lines), strict=True)]
    is_known = any(each.forecast.line_s is not None for each in lines)
    return Forecast(
        lines=tuple(each.forecast for each in lines),
        round=sum((each.forecast.round for each in lines), Traffic()),
        run=sum((each.forecast.run for each in lines), Traffic()),
        line_s=sum(slowest) if is_known else None,
    )


@dataclass(frozen=True, slots=True)
class _Line:
    """A forecast, and the seconds of the first round, of all others together, and of what follows the last."""

    forecast: LineForecast
    stages_s: tuple[float, float, float]


def _line(federation: Federation, sizes: Sizes, nodes: list[Node]) -> _Line:
    homes = len({node.address for node in nodes})
    rounds, everyone, wanted = federation.rounds, len(federation.nodes), fleet.wanted(federation)
    control = sizes.model if sizes.controls else 0
    alone = sizes.model if federation.compare else 0
    first, later, last = (
        homes * each for each in (sizes.model, sizes.down + control, sizes.down + alone * (1 + everyone))
    )
    raw_later, raw_last = homes * (sizes.model + control), homes * (sizes.model + alone * (1 + everyone))
    update, raw_update = sizes.up + control, sizes.model + control
    share = wanted * len(nodes) / everyone
    up_bps, down_bps = _least(nodes, "uplink_bps"), _least(nodes, "downlink_bps")
    most = min(len(nodes), wanted)

    def seconds(down: int, updates: int, size: int = update) -> float:
        return 8 * (down / down_bps + updates * size / up_bps)

    stages_s = (
        seconds(first, most),
        (rounds - 1) * seconds(later, most),
        seconds(last, len(nodes), alone),
    )
    own_s = 8 * (
        (first + (rounds - 1) * later + last) / down_bps + (rounds * share * update + len(nodes) * alone) / up_bps
    )
    of_round = Traffic(
        sent=later, received=round(share * update), raw_sent=raw_later, raw_received=round(share * raw_update)
    )
    of_run = Traffic(
        sent=first + (rounds - 1) * later + last,
        received=round(rounds * share * update) + len(nodes) * alone,
        raw_sent=first + (rounds - 1) * raw_later + raw_last,
        raw_received=round(rounds * share * raw_update) + len(nodes) * alone,
    )
    is_known = min(up_bps, down_bps) < math.inf
    names = tuple(node.name for node in nodes)
    return _Line(LineForecast(nodes=names, round=of_round, run=of_run, line_s=own_s if is_known else None), stages_s)


def _least(nodes: Iterable[Node], way: str) -> float:
    """The bits a second that a line gives one way, no more than fedctl may use; infinite where nobody said."""
    speeds = (getattr(node, name) for node in nodes for name in (way, "bandwidth_bps"))
    return min((speed for speed in speeds if speed is not None), default=math.inf)
