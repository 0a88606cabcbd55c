"""Draw a run's dashboard as it looked at one moment: `python docs/make_dashboard_svg.py runs/latest`.

Reads the run's journal and telemetry, nothing else, and writes docs/dashboard.svg. `--at 0.6` picks the moment by its
share of the run's time, `--at 1` the end.
"""  # noqa: INP001

import argparse
import io
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from fedctl.eventlines import load
from fedctl.records import Progress
from fedctl.state import fold
from fedctl.views.dashboard import dashboard
from fedctl.views.sentence import is_routine

THEME = TerminalTheme(
    (24, 26, 31),
    (208, 212, 220),
    [
        (24, 26, 31),
        (232, 104, 113),
        (140, 194, 101),
        (222, 184, 99),
        (97, 160, 240),
        (193, 124, 222),
        (78, 186, 200),
        (208, 212, 220),
    ],
)


def main() -> None:
    """Read the arguments and write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--at", type=float, default=0.6, help="the moment, as a share of the run's time (0 to 1)")
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_name("dashboard.svg"))
    arguments = parser.parse_args()
    arguments.output.write_text(draw(arguments.run, at=arguments.at, width=arguments.width), encoding="utf-8")


def draw(run: Path, *, at: float, width: int) -> str:
    """The dashboard as SVG."""
    events = [load(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    moment = events[0].at + at * (events[-1].at - events[0].at)
    past = [event for event in events if event.at <= moment]
    progress = {str(sample.key): sample for when, sample in samples(run / "metrics.jsonl") if when <= moment}
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(dashboard(fold(past), progress, [event for event in past if not is_routine(event)], moment))
    return console.export_svg(title="fedctl launch", theme=THEME)


def samples(path: Path) -> Iterator[tuple[datetime, Progress]]:
    """The telemetry and its times; a run without any is drawn without bars."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        sample = json.loads(line)
        yield datetime.fromisoformat(sample.pop("at")), Progress.from_json(sample)


if __name__ == "__main__":
    main()
