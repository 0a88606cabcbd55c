"""Where a run stands, as text from a `StatusReport` alone: what `fedctl status` prints, and the end of a launch."""

from collections.abc import Mapping

from rich.text import Text

from fedctl.records import Kind
from fedctl.report import Standing, StatusReport
from fedctl.views.canvas import cut, folded, parted, spread
from fedctl.views.carried import carried, forecast_line
from fedctl.views.closing import closing_lines, curve_lines
from fedctl.views.nodes import Row, node_lines
from fedctl.views.personal import personal_line
from fedctl.views.promised import promised_line
from fedctl.views.text import clock, listed, plain
from fedctl.views.waits import waiting_lines

WIDEST = 120
LOOKS: Mapping[Standing, tuple[str, str]] = {
    "running": ("●", "cyan"),
    "held": ("■", "yellow"),
    "interrupted": ("■", "yellow"),
    "finished": ("✓", "green"),
    "failed": ("✗", "red"),
}


_STEPS: Mapping[Kind, str] = {
    "keys": "keys",
    "shares": "shares of secrets",
    "train": "training",
    "agree": "signatures",
    "unmask": "unmasking",
}
"""Of a round whose updates are masked, in their order."""


def status_lines(status: StatusReport, width: int) -> list[Text]:
    """The whole report: the run, its nodes, the curve, what came of it, and what to type next."""
    width = min(width, WIDEST)
    sign, style = LOOKS[status.state]
    facts = [clock(status.seconds), *carried(status.bytes)]
    late = {one.node for one in status.stragglers}
    rows = [Row(node=node, progress=None, seconds=None, late=node.name in late) for node in status.nodes]
    return [
        spread(title(status), Text(f"{sign} {status.state}", style), width),
        spread(Text(_rounds(status)), Text(" · ".join(facts), "dim"), width),
        Text(),
        *node_lines(rows, status.monitor.metric, width, bars=False),
        *waiting_lines(status, width),
        *personal_line(status, width),
        *promised_line(status, width),
        *forecast_line(status, width),
        *parted(curve_lines(status, width, 2), closing_lines(status, width), outcome_lines(status, width)),
    ]


def _rounds(status: StatusReport) -> str:
    done, opened = f"{status.round} of {status.rounds} rounds", status.open
    return f"{done}, round {opened.round}{in_step(opened.step)}" if opened and opened.step else done


def in_step(step: Kind | None) -> str:
    """`, step 3 of 5: training` of a round whose updates are masked; nothing of others."""
    return f", step {list(_STEPS).index(step) + 1} of {len(_STEPS)}: {_STEPS[step]}" if step else ""


def title(status: StatusReport) -> Text:
    """The federation and the run."""
    return Text.assemble((plain(status.federation), "bold"), "  ", (plain(status.run), "dim"))


def outcome_lines(status: StatusReport, width: int) -> list[Text]:
    """Why a run stands still and what to type next; nothing while it runs and once it is finished."""
    lines = folded(Text(plain(status.reason), "red"), width) if status.reason else []
    failed = [node.name for node in status.nodes if node.state == "failed" and node.has_log]
    if failed and status.state != "running":
        lines.append(Text.assemble("why: ", (f"fedctl logs {plain(failed[0])} --run {status.run}", "bold")))
    left = [plain(node.name) for node in status.nodes if node.state == "unknown"]
    if left:
        lines += folded(Text(f"at work when the coordinator left, and perhaps still: {listed(left, 3)}", "dim"), width)
    if status.state == "held":
        lines.append(Text.assemble("to go on: ", (f"fedctl aggregate {status.run} --commit", "bold")))
    elif status.resume:
        lines.append(Text.assemble("to resume: ", (status.resume, "bold")))
    return [cut(line, width) for line in lines]
