"""What federating bought beside training alone, in plain words and without kindness."""

import math
from dataclasses import dataclass
from statistics import fmean

from rich.text import Text

from fedctl.federation import Monitor
from fedctl.report import StatusReport
from fedctl.views.text import change, figure, listed

_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The monitored metric of a model trained alone and of the federated one, on the same data; both are finite."""

    node: str
    alone: float
    federated: float
    monitor: Monitor

    @property
    def gain(self) -> float:
        """Above zero where the federated model is better, in either mode; zero where the two read the same."""
        metric = self.monitor.metric
        if figure(metric, self.alone) == figure(metric, self.federated):
            return 0.0
        better = self.federated - self.alone
        return better if self.monitor.mode == "max" else -better

    @property
    def difference(self) -> str:
        """From alone to federated, with its sign."""
        return change(self.monitor.metric, self.federated - self.alone) if self.gain else "0"

    @property
    def style(self) -> str:
        """Green where federating was the better choice."""
        return "green" if self.gain > 0 else "yellow" if self.gain < 0 else "dim"


def pairs(report: StatusReport, *, own: bool) -> dict[str, Pair]:
    """By node: on everyone's validation data, or on its own."""
    metric = report.monitor.metric
    found = {}
    for one in report.compare:
        alone, federated = (one.alone_own, one.federated_own) if own else (one.alone, one.federated)
        values = alone.get(metric, math.nan), federated.get(metric, math.nan)
        if all(math.isfinite(value) for value in values):
            found[one.node] = Pair(node=one.node, alone=values[0], federated=values[1], monitor=report.monitor)
    return found


def verdict(report: StatusReport) -> list[Text]:
    """One line for everyone's data, one for the node that would be worst off alone, one for those better off alone."""
    shared = list(pairs(report, own=False).values())
    if not shared:
        return [Text(f"no {report.monitor.metric} to compare by", "yellow")]
    mean = Pair(
        node="",
        alone=fmean(pair.alone for pair in shared),
        federated=fmean(pair.federated for pair in shared),
        monitor=report.monitor,
    )
    worst = (min if report.monitor.mode == "max" else max)(shared, key=lambda pair: pair.alone)
    lines = [_bought(mean), Text(f"worst node alone: {worst.node} {_step(worst)}")]
    better_alone = [pair.node for pair in pairs(report, own=True).values() if pair.gain < 0]
    if better_alone:
        lines.append(Text(f"better alone on its own data: {listed(better_alone, _NAMED)}", "yellow"))
    return lines


def _bought(mean: Pair) -> Text:
    metric = mean.monitor.metric
    told = f"{mean.difference} {metric}" + (" (lower is better)" if mean.monitor.mode == "min" else "")
    if mean.gain > 0:
        return Text(f"federating bought {told} on everyone's data", "bold green")
    if mean.gain < 0:
        return Text(f"federating did not help: {told} on everyone's data", "bold yellow")
    return Text(f"federating made no difference to {metric} on everyone's data", "bold yellow")


def _step(pair: Pair) -> str:
    metric = pair.monitor.metric
    return f"{figure(metric, pair.alone)} → {figure(metric, pair.federated)}"
