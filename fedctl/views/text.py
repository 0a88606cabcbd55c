"""Words and figures for people: names and errors made safe, numbers rounded with sense. Loads nothing of rich."""

import math
import re
from collections.abc import Mapping, Sequence

_ESCAPE = re.compile(
    r"""
      (?: \x1b\[ | \x9b ) [0-?]* [\ -/]* [@-~]                # CSI: colours, the cursor, erasing
    | (?: \x1b[\]PX^_] | [\x90\x98\x9d-\x9f] )                # OSC and its like: titles, the clipboard
      [^\x07\x1b\x9c]* (?: \x07 | \x1b\\ | \x9c )?
    | \x1b [\ -/]* [0-~]                                      # any other
    """,
    re.VERBOSE,
)


def plain(text: str) -> str:
    """One line of printable characters: whatever else a node has sent cannot drive the terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in _ESCAPE.sub("", text)).split())


def printable(text: str) -> str:
    """Text of many lines, as a log is, with its layout: the same care, but line ends and tabs are kept."""
    return "".join(c if c.isprintable() or c in "\n\t" else "" for c in _ESCAPE.sub("", text))


def figure(name: str, value: float | None) -> str:
    """A metric by its name: three significant digits of a loss, four of anything else."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return str(value)
    digits = 3 if "loss" in name.lower() else 4
    magnitude = abs(value)
    if value and not 10 ** (1 - digits) <= magnitude < 10**5:
        return f"{value:.{digits - 2}e}".replace("e-0", "e-").replace("e+0", "e+")
    if digits == 4 and magnitude <= 1:
        return f"{value:.4f}"
    return f"{value:#.{digits}g}".rstrip(".") if magnitude < 10**digits else f"{value:.0f}"


def change(name: str, value: float) -> str:
    """A difference in a metric, with its sign; 0 where it vanishes in rounding."""
    if abs(value) < 0.5e-4:
        return "0"
    return figure(name, value) if value < 0 or math.isnan(value) else f"+{figure(name, value)}"


def size(number: int) -> str:
    """Bytes, in decimal units: `812 B`, `1.2 MB`, `34 GB`."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.1f} {unit}" if unit != "B" and value < 9.95 else f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def of_raw(number: int, raw: int) -> str:
    """What a codec has made of so many raw bytes: `1/18 of raw`, `83% of raw`; nothing where it is the same."""
    if number == raw or not number or not raw:
        return ""
    return f"1/{raw / number:.0f} of raw" if raw >= 10 * number else f"{number / raw:.0%} of raw"


def clock(seconds: float) -> str:
    """A time that ticks, in whole seconds: `4s`, `1m 03s`, `2h 05m`, `3d 04h`."""
    whole = max(0, int(seconds))
    minutes, hours = whole // 60, whole // 3600
    if whole < 60:
        return f"{whole}s"
    if minutes < 60:
        return f"{minutes}m {whole % 60:02d}s"
    if hours < 24:
        return f"{hours}h {minutes % 60:02d}m"
    return f"{hours // 24}d {hours % 24:02d}h"


def roughly(seconds: float) -> str:
    """An estimate, no finer than it deserves: `40s`, `5m`, `2h 05m`."""
    if seconds < 55:
        return f"{5 * max(1, math.ceil(seconds / 5))}s"
    return f"{round(seconds / 60)}m" if seconds < 3570 else clock(seconds)


def duration(seconds: float) -> str:
    """A time that something took; below ten seconds with its tenths."""
    return f"{seconds:.1f}s" if 0 <= seconds < 9.95 else clock(round(seconds))


def counted(number: int, noun: str) -> str:
    """`1 node`, `3 nodes`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def on_some(number: int, whole: int) -> str:
    """` on 3 of 5 nodes`, to be put behind what holds of them; nothing where it holds of all."""
    return f" on {number:,} of {counted(whole, 'node')}" if number < whole else ""


def listed(names: Sequence[str], most: int) -> str:
    """`alice, bob and 12 others`: the first names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {counted(rest, 'other')}" if rest > 0 else "")


def files(found: Mapping[str, int]) -> str:
    """Files, and folders with their number of files: `data/ (4 files), secrets.py`."""
    named = [f"{name} ({counted(number, 'file')})" if name.endswith("/") else name for name, number in found.items()]
    return ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
