"""What a run waits for, in the lines below its table of nodes, and at its end what it has waited for."""

from collections import Counter
from collections.abc import Sequence

from rich.text import Text

from fedctl.activity import NodeStanding
from fedctl.report import StatusReport
from fedctl.views.canvas import folded
from fedctl.views.text import clock, counted, listed, plain

NOTABLE = 0.05
"""Less than this share of a run's time is not worth a word, nor is a node's smaller share of the waiting."""
LEAST_S = 10.0
"""Nor are so few seconds of waiting."""
_NAMED = 3


def waiting_lines(report: StatusReport, width: int) -> list[Text]:
    """At most three sentences; none where nothing is out of the ordinary."""
    if report.state == "running":
        sentences = [_absent(report), _late(report), _partial(report)]
    else:
        sentences = [_waited(report), _partial(report)]
    return [line for one in sentences if one for line in folded(one, width)]


def again(node: NodeStanding) -> str:
    """`looked for again in 12s`; nothing of a node that is here."""
    if node.again_s is None:
        return ""
    verb = "asked again" if node.state == "away" else "looked for again"
    return f"{verb} in {clock(node.again_s)}" if node.again_s >= 1 else f"{verb} now"


def _absent(report: StatusReport) -> Text | None:
    """Nodes that a round waits for and that are not here."""
    number, absent = _round_and_absent(report)
    if not absent:
        return None
    reason = f": {plain(absent[0].error or 'no reason was given')}" if len(absent) == 1 else ""
    said = f"round {number} waits for {listed([node.name for node in absent], _NAMED)}{reason}"
    said += f"; {again(min(absent, key=lambda node: node.again_s or 0.0))}"
    patience_s = max((node.patience_s for node in absent if node.patience_s is not None), default=None)
    if patience_s is not None:
        said += f", {'the last ' if len(absent) > 1 else ''}given up on in {clock(patience_s)}"
    if report.open:
        said += f" ({len(report.open.updates)} of {counted(report.open.wanted, 'update')}, {report.open.quorum} needed)"
    return Text(said, "yellow")


def _round_and_absent(report: StatusReport) -> tuple[int, Sequence[NodeStanding]]:
    """The round that waits, and the nodes that it waits for: those expected back, or else those whose owners say no."""
    away = [node for node in report.nodes if node.state == "away"]
    opened = report.open
    if opened is None:
        is_between = report.model is not None and report.round < report.rounds
        is_ready = not any(node.state == "preparing" for node in report.nodes)
        return report.round + 1, away if is_between and is_ready else ()
    asked = {node.name for node in report.nodes} if opened.max_staleness else set(opened.nodes)
    missing = [node for node in report.nodes if node.name in asked and node.name not in opened.updates]
    if opened.max_staleness and any(node.state in ("training", "waiting") for node in missing):  # others fill it
        return opened.round, ()
    if expected := [node for node in missing if node.awaited]:
        return opened.round, expected
    is_stuck = len(opened.updates) < opened.quorum and all(node.state in ("failed", "lost", "away") for node in missing)
    return opened.round, away if is_stuck else ()


def _late(report: StatusReport) -> Text | None:
    """The stragglers; those that are out of reach have been told of."""
    here = {node.name for node in report.nodes if node.state != "lost"}
    late = [one for one in report.stragglers if one.node in here]
    if not late:
        return None
    ratio = f"{late[0].ratio:.1f}x the median of {clock(late[0].seconds / late[0].ratio)}"
    if len(late) == 1:
        return Text(f"waiting for {late[0].node} ({late[0].cause}, {ratio})", "yellow")
    return Text(f"waiting for {listed([f'{one.node} ({one.cause})' for one in late], _NAMED)}: {ratio}", "yellow")


def _partial(report: StatusReport) -> Text | None:
    """Whose work was taken in part, how often, and how many steps it was the last time."""
    taken = [one.partial for one in report.history]
    taken.append({node.name: node.partial_steps for node in report.nodes if node.partial_steps is not None})
    rounds = Counter(name for partial in taken for name in partial)
    if not rounds:
        return None
    steps = {name: number for partial in taken for name, number in partial.items()}
    told = [
        f"{name} in {counted(times, 'round')} ({counted(steps[name], 'step')}{' last' if times > 1 else ''})"
        for name, times in rounds.most_common()
    ]
    return Text(f"taken in part: {listed(told, _NAMED)}", "dim")


def _waited(report: StatusReport) -> Text | None:
    """For whom a run has waited most, once it is over."""
    total = sum(one.seconds for one in report.waiting)
    if report.state not in ("finished", "failed") or total < max(LEAST_S, NOTABLE * report.seconds):
        return None
    slowest = [one for one in report.waiting if one.share >= NOTABLE][:_NAMED]
    told = ", ".join(f"{one.node} {one.share:.0%} ({one.cause})" for one in slowest)
    whom = f"the slowest: {told}" if told else f"slow nodes, for each less than {NOTABLE:.0%} of it"
    return Text(f"waited {clock(total)} in all for {whom}", "dim")
