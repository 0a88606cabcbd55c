"""What a run has promised of its nodes' data, and spent of it, in a line."""

from rich.text import Text

from fedctl.report import StatusReport
from fedctl.views.canvas import cut

_WHO = {
    "central": "noise of the coordinator",
    "distributed": "noise of the nodes, summed under masks",
    "local": "noise of each node",
}


def promised_line(report: StatusReport, width: int) -> list[Text]:
    """`ε 3.2 of 8 at δ 1e-05 · one more round 3.9 · noise of the coordinator`; nothing where no noise is added."""
    privacy = report.privacy
    if privacy is None:
        return []
    of = "" if privacy.budget is None else f" of {privacy.budget:g}"
    parts = [Text.assemble((f"ε {privacy.epsilon:.3g}", "bold"), f"{of} at δ {privacy.delta:g}")]
    if privacy.epsilon_next is not None and report.state != "finished":
        parts.append(Text(f"one more round {privacy.epsilon_next:.3g}", "dim"))
    parts.append(Text(_WHO.get(privacy.noise, privacy.noise), "dim"))
    return [cut(Text(" · ", "dim").join(parts), width)]
