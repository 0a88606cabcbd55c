"""What the benchmarks measure with: processes, their time, medians, and the rows that come of them.

Numbers are medians of repetitions, and where it can be so, ratios to a peer that ran just before or after: the machine
is never quiet, but it is equally loud to both. Nothing here asserts anything.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FEDCTL = (str(Path(sys.executable).with_name("fedctl")),)
LONGEST_S = 300.0
"""No single command takes longer on any machine that these numbers are meant for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number: `at_most` is its target, `beside` what its peer in the same run had, `details` what led to it."""

    name: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    beside: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None without one, or where there is nothing to compare."""
        if (self.at_most is None and self.at_least is None) or not math.isfinite(self.value):
            return None
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value if math.isfinite(self.value) else None,
            "unit": self.unit,
            "at_most": self.at_most,
            "at_least": self.at_least,
            "is_met": self.is_met,
            "beside": self.beside,
            "details": self.details,
        }


def table(rows: Sequence[Row]) -> str:
    """The rows in aligned columns; a `*` stands before what misses its target."""
    cells = [("", "name", "measured", "target", "beside")]
    cells += [
        ("*" if row.is_met is False else "", row.name, shown(row.value, row.unit), _target(row), row.beside)
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    return "\n".join(
        f"{mark:1} {name:{widths[1]}}  {measured:>{widths[2]}}  {target:>{widths[3]}}  {beside}".rstrip()
        for mark, name, measured, target, beside in cells
    )


def shown(value: float, unit: str = "") -> str:
    """Three significant digits and the unit; `x` clings to its number."""
    if not math.isfinite(value):
        return "-"
    number = f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
    return f"{number}{unit}" if unit == "x" else f"{number} {unit}".rstrip()


def median(values: Iterable[float]) -> float:
    """The median; NaN of nothing."""
    found = list(values)
    return statistics.median(found) if found else math.nan


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of neighbours, so that a load that comes and goes weighs on both."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def slope(points: Sequence[tuple[float, float]]) -> float:
    """How much y grows with x, by least squares."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return statistics.linear_regression(xs, ys).slope if len(points) > 1 else math.nan


def interleaved(measures: Mapping[str, Callable[[], float]], times: int) -> dict[str, list[float]]:
    """Each measure in turn, `times` times over."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(times):
        for name, measure in measures.items():
            found[name].append(measure())
    return found


def run(argv: Sequence[str], **options: Any) -> str:
    """Run a command to its end and return its stdout; what it says on stderr is shown only when it fails."""
    done = subprocess.run(
        argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LONGEST_S, check=False, **options
    )
    if done.returncode:
        raise RuntimeError(f"`{' '.join(argv)}` ended with status {done.returncode}:\n{done.stderr or done.stdout}")
    return done.stdout


def seconds(argv: Sequence[str], **options: Any) -> float:
    """The wall time of a command."""
    began = time.perf_counter()
    run(argv, **options)
    return time.perf_counter() - began


def cpu_seconds(argv: Sequence[str], **options: Any) -> float:
    """User and system time of a command and of all that it leaves behind, detached or not, to the last one's end."""
    said = run([sys.executable, "-m", "tests.bench.reaper", *argv], **{"cwd": ROOT, **options})
    return float(json.loads(said.splitlines()[-1])["cpu_seconds"])


def machine() -> dict[str, Any]:
    """How many processors there are and how busy they have been for 1, 5 and 15 minutes."""
    return {"cpus": len(os.sched_getaffinity(0)), "load": [round(load, 2) for load in os.getloadavg()]}


def _target(row: Row) -> str:
    parts = []
    if row.at_most is not None:
        parts.append(f"<= {shown(row.at_most, row.unit)}")
    if row.at_least is not None:
        parts.append(f">= {shown(row.at_least, row.unit)}")
    return ", ".join(parts) or "-"
