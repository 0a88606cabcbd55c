"""Drawing in lines of text: columns that give way when it gets narrow, bars, a small plot.

Everything is drawn as whole lines that fit, in Unicode; `Drawing` puts them on a console, and on one that knows only
ASCII it swaps each sign for one of the same width. Text is never markup.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

GAP = 2
_ASCII = str.maketrans(
    {"━": "=", "╸": ">", "─": "-", "…": "~", "·": "-", "→": ">", "↑": "^", "↓": "v", "│": "|", "┤": "+", "└": "+"}
    | {"✓": "+", "✗": "x", "○": "o", "●": "*", "■": "#"}
    | dict(zip("▁▂▃▄▅▆▇█", "..::--##", strict=True))
    | dict.fromkeys("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "*")
)
_EIGHTHS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Drawing:
    """Lines for the width at hand; `draw` is asked anew at each print, so that it follows the terminal's size."""

    draw: Callable[[int], Sequence[Text]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.draw(options.max_width):
            line.rstrip()
            line.no_wrap, line.overflow = True, "crop"
            if options.ascii_only:
                line.plain = line.plain.translate(_ASCII).encode("ascii", "replace").decode("ascii")
            yield line


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table; those of the highest `priority` give way first."""

    key: str
    title: str
    width: int
    justify: Literal["left", "right"] = "right"
    priority: int = 0


def fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns that fit into a width, the important ones first to stay."""
    kept = list(columns)
    while len(kept) > 1 and total(kept) > width and (least := max(column.priority for column in kept)) > 0:
        kept = [column for column in kept if column.priority < least]
    return kept


def total(columns: Sequence[Column]) -> int:
    """The width of a row of these columns."""
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)


def row(columns: Sequence[Column], cells: Mapping[str, Text]) -> Text:
    """One line of a table."""
    return Text(" " * GAP).join(cell(cells.get(c.key, Text()), c.width, c.justify) for c in columns)


def titles(columns: Sequence[Column]) -> Text:
    """The line above a table."""
    return row(columns, {column.key: Text(column.title, "dim") for column in columns})


def cell(text: Text, width: int, justify: Literal["left", "right"] = "left") -> Text:
    """The text cut or padded to exactly this width."""
    text = cut(text, width)
    space = " " * (width - text.cell_len)
    return Text.assemble(text, space) if justify == "left" else Text.assemble(space, text)


def cut(text: Text, width: int) -> Text:
    """The text, ending in an ellipsis where it is longer than a width."""
    text = text.copy()
    text.truncate(max(0, width), overflow="ellipsis")
    return text


def folded(text: Text, width: int, most: int = 4) -> list[Text]:
    """The text in its one style, broken between words over as many lines as it needs."""
    lines = textwrap.wrap(text.plain, max(1, width)) or [""]
    return [Text(line, text.style) for line in lines[:most]]


def spread(left: Text, right: Text, width: int) -> Text:
    """Two texts at the two ends of a line; the left one is cut where both do not fit."""
    right = cut(right, width)
    room = width - right.cell_len
    return Text.assemble(cell(left, room - GAP), " " * GAP, right) if room > GAP else right


def parted(*parts: Sequence[Text]) -> list[Text]:
    """The parts that have lines, each below an empty one."""
    return [line for part in parts if part for line in (Text(), *part)]


def bar(fraction: float, width: int, style: str) -> Text:
    """A progress bar, fine to half a cell."""
    halves = round(2 * width * min(1.0, max(0.0, fraction)))
    full, half = divmod(halves, 2)
    return Text.assemble(("━" * full + "╸" * half, style), ("─" * (width - full - half), "dim"))


def plot(values: Sequence[float | None], width: int, height: int, style: str) -> list[Text]:
    """Bars side by side, from the lowest to the highest value; None keeps a place free, a non-number is marked."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    shown = _resampled(values, width)
    each = max(1, min(5, width // max(1, len(shown))))
    gap = " " if each > 2 else ""
    lines = []
    for level in reversed(range(height)):
        signs = (_sign(value, low, high, level, height) * (each - len(gap)) + gap for value in shown)
        lines.append(Text("".join(signs), style))
    return lines


def _sign(value: float | None, low: float, high: float, level: int, height: int) -> str:
    if value is None:
        return " "
    if not math.isfinite(value):
        return "x" if level == 0 else " "
    share = (value - low) / (high - low) if high > low else 1.0
    eighths = 1 + round(share * (8 * height - 1))
    return _EIGHTHS[max(0, min(8, eighths - 8 * level))]


def _resampled(values: Sequence[float | None], width: int) -> list[float | None]:
    """At most `width` values: of each stretch the last."""
    if len(values) <= width:
        return list(values)
    return [values[(index + 1) * len(values) // width - 1] for index in range(width)]
