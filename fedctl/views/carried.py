"""What the lines carry, in words: bytes both ways, what codecs have made of them, and what was forecast."""

from rich.text import Text

from fedctl.report import StatusReport
from fedctl.traffic import Traffic
from fedctl.views.canvas import cut
from fedctl.views.text import of_raw, size


def carried(traffic: Traffic) -> list[str]:
    """`↓ 66 MB` to the nodes and `↑ 12 MB, 1/18 of raw` from them."""
    ways = (("↓", traffic.sent, traffic.raw_sent), ("↑", traffic.received, traffic.raw_received))
    return [", ".join(filter(None, (f"{arrow} {size(came)}", of_raw(came, raw)))) for arrow, came, raw in ways]


def forecast_line(report: StatusReport, width: int) -> list[Text]:
    """What was forecast at the start for the whole run; nothing where that is not known."""
    return [cut(Text(said, "dim"), width) for said in _forecast(report)]


def carried_line(report: StatusReport, width: int) -> list[Text]:
    """What the lines have carried beside the forecast; nothing where there is none and no codec."""
    forecast = _forecast(report)
    is_coded = report.bytes != Traffic(sent=report.bytes.sent, received=report.bytes.received)
    if not forecast and not is_coded:
        return []
    return [cut(Text(" · ".join([*carried(report.bytes), *forecast]), "dim"), width)]


def _forecast(report: StatusReport) -> list[str]:
    if report.forecast is None:
        return []
    when = "" if report.state == "finished" else " for the whole run"
    return [f"forecast{when}: ↓ {size(report.forecast.sent)} ↑ {size(report.forecast.received)}"]
