"""Personal models beside the global one: a line while a run goes on, a table and what it means once it is over."""

import math
from collections.abc import Sequence

from rich.text import Text

from fedctl.measures import Personal, Personalization, goodness
from fedctl.report import StatusReport
from fedctl.views.canvas import Column, cut, fitting, folded, row, titles
from fedctl.views.text import figure, on_some
from fedctl.views.verdict import personal_pairs, personal_verdict

_MOST_ROWS = 12
"""The table of nodes has the numbers of all; of more nodes than this only those that are served worst are shown."""


def personal_line(report: StatusReport, width: int) -> list[Text]:
    """`personal: val_acc 0.95 (global 0.90) on 3 of 5 nodes, worst carol 0.91 (bob 0.75)`, until a run is finished."""
    found, metric = report.personal, report.monitor.metric
    if found is None or report.state == "finished" or metric not in found.metrics["personal"]:
        return []
    means = {label: figure(metric, metrics.get(metric)) for label, metrics in found.metrics.items()}
    said = f"{'fine-tuned' if found.finetuned else 'personal'}: {metric} {means['personal']} (global {means['global']})"
    said += on_some(len(found.compared), len(report.nodes))
    own, everyones = found.worst["personal"], found.worst["global"]
    if own and everyones:
        beside = f"{everyones.node} " if everyones.node != own.node else ""
        said += f", worst {own.node} {figure(metric, own.metrics[metric])}"
        said += f" ({beside}{figure(metric, everyones.metrics[metric])})"
    return folded(Text(said), width)


def personal_lines(report: StatusReport, width: int, height: int | None = None) -> list[Text]:
    """A row for each node of a finished run: the global model beside its own one; then what that means, in words.

    Where not all rows fit, the nodes that their own models serve worst come first; where hardly any do, there are only
    the words, as far as the height allows.
    """
    found = report.personal
    if found is None or report.state != "finished":
        return []
    words = [line for one in personal_verdict(report) for line in folded(one, width)]
    room = _MOST_ROWS if height is None else min(_MOST_ROWS, height - 3 - len(words))
    if room < min(2, len(found.nodes)):
        return words if height is None else words[: max(0, height)]
    columns = fitting(_columns(report, found), width)
    shown = found.nodes if len(found.nodes) <= room else _worst_first(report, found)[: room - 1]
    gains = {name: Text(pair.difference, pair.style) for name, pair in personal_pairs(report).items()}
    body = [row(columns, {**_cells(report, found, one), "gain": gains.get(one.node, Text())}) for one in shown]
    if len(shown) < len(found.nodes):
        body.append(Text(f"… and {len(found.nodes) - len(shown):,} more, none served worse by its own model", "dim"))
    made = "fine-tuned" if found.finetuned else "kept"
    some = on_some(len(found.nodes), len(report.nodes))
    whose = f"{some}, each on its own data" if some else ", on each node's own data"
    heading = Text(f"personal models {made} after round {found.round}{whose}", "dim")
    return [cut(line, width) for line in [heading, titles(columns), *body, Text(), *words]]


def _columns(report: StatusReport, found: Personalization) -> list[Column]:
    name = min(16, max(4, *(len(one.node) for one in found.nodes)))
    return [
        Column(key="name", title="node", width=name, justify="left"),
        Column(key="global", title="global", width=8),
        Column(key="personal", title="personal", width=8),
        Column(key="gain", title="gain" if report.monitor.mode == "max" else "change", width=8, priority=1),
        Column(key="worst", title="", width=14, justify="left", priority=2),
    ]


def _worst_first(report: StatusReport, found: Personalization) -> Sequence[Personal]:
    metric, mode = report.monitor.metric, report.monitor.mode
    return sorted(found.nodes, key=lambda one: goodness(one.personal.get(metric, math.nan), mode))


def _cells(report: StatusReport, found: Personalization, one: Personal) -> dict[str, Text]:
    metric = report.monitor.metric
    worst = [label for label, node in found.worst.items() if node and node.node == one.node]
    marks = {label: "yellow" if label in worst else "" for label in found.worst}
    return {
        "name": Text(one.node),
        "global": Text(figure(metric, one.global_.get(metric)), marks["global"]),
        "personal": Text(figure(metric, one.personal.get(metric)), marks["personal"]),
        "worst": Text(f"worst {'of both' if len(worst) > 1 else worst[0]}" if worst else "", "yellow"),
    }
