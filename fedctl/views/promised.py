"""What a run has promised of its nodes' data, and spent of it, in a line."""

from rich.text import Text

from fedctl.privacy import Privacy
from fedctl.report import StatusReport
from fedctl.views.canvas import cut
from fedctl.views.text import counted

_WHO = {
    "central": "noise of the coordinator",
    "distributed": "noise of the nodes, summed under masks",
    "local": "noise of each node",
}


def promised_line(report: StatusReport, width: int) -> list[Text]:
    """`updates masked · ε 3.2 of 8 at δ 1e-05 · one more round 3.9 · noise of the nodes`; nothing without a promise."""
    privacy = report.privacy
    if privacy is None:
        return []
    parts = [Text("updates masked", "bold")] if privacy.masked else []
    if privacy.noise and privacy.epsilon is not None:
        of = "" if privacy.budget is None else f" of {privacy.budget:g}"
        most = "at most " if privacy.noise == "local" else ""
        parts.append(Text.assemble(f"{most}", (f"ε {privacy.epsilon:.3g}", "bold"), f"{of} at δ {privacy.delta:g}"))
        if privacy.epsilon_next is not None and report.state != "finished":
            parts.append(Text(f"one more round {privacy.epsilon_next:.3g}", "dim"))
        parts.append(Text(_WHO.get(privacy.noise, privacy.noise), "dim"))
    return [cut(Text(" · ", "dim").join(parts), width)]


def promises(privacy: Privacy, epsilon: float | None, rounds: int) -> list[tuple[str, str]]:
    """What a run will promise, as pairs of a title and a text; nothing where that is nothing."""
    said = []
    if privacy.secure_aggregation:
        share = privacy.secure_aggregation.threshold
        said.append(f"updates are masked; the masks come off while {share:.0%} of a cohort are there")
    if privacy.clip:
        said.append(f"each node cuts its update down to a norm of {privacy.clip:g}")
    if dp := privacy.differential_privacy:
        spent = "" if epsilon is None else f": ε {epsilon:.3g} at δ {dp.delta:g} after {counted(rounds, 'round')}"
        most = "" if dp.epsilon is None else f"; the run ends before it would spend more than {dp.epsilon:g}"
        said.append(f"{_WHO[dp.mode]}, {dp.noise:g} times a clip of {dp.clip:g}{spent}{most}")
    return [("privacy", one) for one in said]
