"""Draw what `make claims` left in tests/claims/results: `python docs/make_claims_svg.py`.

Writes docs/claims-NAME.svg for each results/NAME.json, which has values between 0 and 1 by the labels of their series.
The colours suit a light and a dark page, and grey ones follow the reader's choice.
"""  # noqa: INP001

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 300
LEFT, TOP, RIGHT, BOTTOM = 52, 34, 500, 254
"""Where the plot lies in the picture; the legend has what is right of it."""
COLOURS = ("#3b82c4", "#d9682b", "#2f9e6e", "#b667b0", "#b08a1e", "#c9484f")
STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #57606a }
.title { font-weight: 600 }
.grid { stroke: #8c959f; stroke-opacity: 0.3 }
.mark { stroke: #8c959f; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) { text { fill: #b1bac4 } }
</style>"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A picture of one file; `bottom` is the accuracy at its foot, `mark` one with a dashed line."""

    title: str
    bottom: float
    mark: float | None = None
    by_node: bool = False


CHARTS: Mapping[str, Chart] = {
    "stragglers": Chart(title="Nine of ten nodes are too slow: accuracy, mean of 5 data sets", bottom=0.3),
    "rounds": Chart(title="Ten nodes with unlike images (seed 0): accuracy on others' images", bottom=0.8, mark=0.95),
    "hostile": Chart(title="Two of eleven nodes are hostile (seed 0): accuracy", bottom=0.3),
    "personal": Chart(title="Fine-tuned on each node (seed 0): accuracy on its own images", bottom=0.8, by_node=True),
}


def main() -> None:
    """Read the arguments and write the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    results = Path(__file__).parents[1] / "tests" / "claims" / "results"
    parser.add_argument("results", type=Path, nargs="?", default=results, help="the folder of results")
    arguments = parser.parse_args()
    for path in sorted(arguments.results.glob("*.json")):
        picture = draw(CHARTS[path.stem], json.loads(path.read_text(encoding="utf-8")))
        Path(__file__).with_name(f"claims-{path.stem}.svg").write_text(picture, encoding="utf-8")


def draw(chart: Chart, series: Mapping[str, Sequence[float]]) -> str:
    """The picture as SVG."""
    if chart.by_node:  # the first series says which node stands where
        order = sorted(range(len(next(iter(series.values())))), key=list(next(iter(series.values()))).__getitem__)
        series = {label: [values[place] for place in order] for label, values in series.items()}
    longest = max(map(len, series.values()))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">',
        f"<title>{escape(chart.title)}</title>",
        STYLE,
        f'<text class="title" x="{LEFT}" y="18">{escape(chart.title)}</text>',
        *_grid(chart, longest),
    ]
    for number, (label, values) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [(_x(chart, place, longest), _y(chart, value)) for place, value in enumerate(values, start=1)]
        if chart.by_node:
            lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>' for x, y in points]
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        height = TOP + 14 + 20 * number
        lines.append(f'<rect x="{RIGHT + 48}" y="{height - 8}" width="14" height="4" fill="{colour}"/>')
        lines.append(f'<text x="{RIGHT + 70}" y="{height}">{escape(label)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _grid(chart: Chart, longest: int) -> Iterator[str]:
    """A line every ten points of accuracy, or every five where there is room, and numbers along both sides."""
    step = 0.05 if chart.bottom >= 0.8 else 0.1
    if chart.mark is not None:
        y = _y(chart, chart.mark)
        yield f'<line class="mark" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{RIGHT + 4}" y="{y + 4:.1f}">{100 * chart.mark:.0f} %</text>'
    for number in range(round((1 - chart.bottom) / step) + 1):
        value = chart.bottom + number * step
        y = _y(chart, value)
        yield f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{100 * value:.0f} %</text>'
    if chart.by_node:
        middle = (LEFT + RIGHT) / 2
        yield f'<text x="{middle}" y="{BOTTOM + 20}" text-anchor="middle">the nodes, worst served first</text>'
        return
    every = max(longest // 5, 1)
    for place in range(every, longest + 1, every):
        x = _x(chart, place, longest)
        yield f'<text x="{x:.1f}" y="{BOTTOM + 20}" text-anchor="middle">{place}</text>'
    yield f'<text x="{RIGHT + 18}" y="{BOTTOM + 20}">round</text>'


def _x(chart: Chart, place: int, longest: int) -> float:
    """Where round or node `place`, from 1, stands; nodes keep off the edges."""
    share = (place - 0.5) / longest if chart.by_node else (place - 1) / max(longest - 1, 1)
    return LEFT + share * (RIGHT - LEFT)


def _y(chart: Chart, value: float) -> float:
    """How high an accuracy stands; what is below the foot lies on it."""
    share = (max(value, chart.bottom) - chart.bottom) / (1 - chart.bottom)
    return BOTTOM - share * (BOTTOM - TOP)


if __name__ == "__main__":
    main()
