"""What federating and personal models bought, in plain words and without kindness."""

import math
from dataclasses import dataclass
from statistics import fmean

from rich.text import Text

from fedctl.federation import Monitor
from fedctl.measures import Metrics, Personal, Personalization
from fedctl.report import StatusReport
from fedctl.views.text import change, figure, listed, on_some

_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The monitored metric of two models on the same data, as from one `before` to one `after`; both are finite."""

    node: str
    before: float
    after: float
    monitor: Monitor

    @property
    def gain(self) -> float:
        """Above zero where the second model is better, in either mode; zero where the two read the same."""
        metric = self.monitor.metric
        if figure(metric, self.before) == figure(metric, self.after):
            return 0.0
        better = self.after - self.before
        return better if self.monitor.mode == "max" else -better

    @property
    def difference(self) -> str:
        """From the first to the second, with its sign."""
        return change(self.monitor.metric, self.after - self.before) if self.gain else "0"

    @property
    def style(self) -> str:
        """Green where the second is the better choice."""
        return "green" if self.gain > 0 else "yellow" if self.gain < 0 else "dim"


def pairs(report: StatusReport, *, own: bool) -> dict[str, Pair]:
    """By node, from alone to federated: on everyone's validation data, or on its own."""
    found = (
        _pair(report, one.node, *((one.alone_own, one.federated_own) if own else (one.alone, one.federated)))
        for one in report.compare
    )
    return {pair.node: pair for pair in found if pair}


def personal_pairs(report: StatusReport) -> dict[str, Pair]:
    """By node, from the global model to its personal one, on its own validation data."""
    rows = report.personal.nodes if report.personal else ()
    found = (_pair(report, one.node, one.global_, one.personal) for one in rows)
    return {pair.node: pair for pair in found if pair}


def verdict(report: StatusReport) -> list[Text]:
    """One line for everyone's data, one for the node that would be worst off alone, one for those better off alone."""
    shared = list(pairs(report, own=False).values())
    if not shared:
        return [Text(f"no {report.monitor.metric} to compare by", "yellow")]
    mean = Pair(
        node="",
        before=fmean(pair.before for pair in shared),
        after=fmean(pair.after for pair in shared),
        monitor=report.monitor,
    )
    worst = (min if report.monitor.mode == "max" else max)(shared, key=lambda pair: pair.before)
    lines = [_bought("federating", mean, "on everyone's data"), Text(f"worst node alone: {worst.node} {_step(worst)}")]
    better_alone = [pair.node for pair in pairs(report, own=True).values() if pair.gain < 0]
    if better_alone:
        lines.append(Text(f"better alone on its own data: {listed(better_alone, _NAMED)}", "yellow"))
    return lines


def personal_verdict(report: StatusReport) -> list[Text]:
    """One line for the mean, one for the node that each side serves worst, one for those better off without."""
    found, metric = report.personal, report.monitor.metric
    if found is None:
        return []
    lines = [_personal_mean(report, found)]
    everyones, own = found.worst["global"], found.worst["personal"]
    if everyones and own:
        values = [figure(metric, one.metrics[metric]) for one in (everyones, own)]
        if everyones.node == own.node:
            lines.append(Text(f"worst node: {own.node} {values[0]} → {values[1]}"))
        else:
            said = f"{everyones.node} {values[0]} with the global model, {own.node} {values[1]} with its own"
            lines.append(Text(f"worst node: {said}"))
    gains = {pair.node: pair.gain for pair in personal_pairs(report).values()}
    gains |= {one.node: -math.inf for one in found.nodes if _has_only_global(found, one, metric)}
    better_global = [one.node for one in found.nodes if gains.get(one.node, 0.0) < 0]
    if better_global:
        lines.append(Text(f"better with the global model: {listed(better_global, _NAMED)}", "yellow"))
    return lines


def _personal_mean(report: StatusReport, found: Personalization) -> Text:
    """What the means are, on which nodes; where the global model is but a part, that comes before any praise."""
    metric = report.monitor.metric
    diverged = f" ({len(found.diverged):,} diverged)" if found.diverged else ""
    mean = _pair(report, "", found.metrics["global"], found.metrics["personal"])
    if mean is None:
        return Text(f"no {metric} to compare by{diverged}", "yellow")
    what = "fine-tuned models" if found.finetuned else "personal models"
    some = on_some(len(found.compared), len(report.nodes)) + diverged
    if found.global_is_part:
        told = _told(mean) if mean.gain else f"no difference in {metric}"
        part = "the global model, in which what stays at home is as it was at first"
        return Text(f"{what}: {told}{some} against {part}", "bold" if mean.gain > 0 else "bold yellow")
    return _bought(what, mean, f"{some.strip()}, each on its own data" if some else "on each node's own data")


def _has_only_global(found: Personalization, one: Personal, metric: str) -> bool:
    """Whether a node's own model has diverged, and the global one has not there."""
    return one.node in found.diverged and math.isfinite(one.global_[metric])


def _pair(report: StatusReport, node: str, before: Metrics, after: Metrics) -> Pair | None:
    metric = report.monitor.metric
    values = before.get(metric, math.nan), after.get(metric, math.nan)
    if not all(math.isfinite(value) for value in values):
        return None
    return Pair(node=node, before=values[0], after=values[1], monitor=report.monitor)


def _bought(what: str, mean: Pair, where: str) -> Text:
    if mean.gain > 0:
        return Text(f"{what} bought {_told(mean)} {where}", "bold green")
    if mean.gain < 0:
        return Text(f"{what} did not help: {_told(mean)} {where}", "bold yellow")
    return Text(f"{what} made no difference to {mean.monitor.metric} {where}", "bold yellow")


def _told(mean: Pair) -> str:
    return f"{mean.difference} {mean.monitor.metric}" + (" (lower is better)" if mean.monitor.mode == "min" else "")


def _step(pair: Pair) -> str:
    metric = pair.monitor.metric
    return f"{figure(metric, pair.before)} → {figure(metric, pair.after)}"
