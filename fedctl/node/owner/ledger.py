"""`fedctl node ledger`: what has left this node, by its own account, without any coordinator."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fedctl.node.agent import entry_lines, examine, parse
from fedctl.node.owner.errors import STATE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, Optional

    Entry = Dict[str, Any]

KINDS = ("update", "result", "log", "progress", "facts", "answer", "torn")
WIDTHS = (7, 24, 9, 44, 12)
"""Of the columns before the last, in characters."""
MOST_METRICS = 6


def show(
    home: Path,
    run: Optional[str] = None,
    kind: Optional[str] = None,
    *,
    verify: bool = False,
    as_json: bool = False,
) -> int:
    """Print the entries of the ledger in that folder, or those of one run or kind; returns the exit code.

    With `verify` all hashes of its chain are computed, and the code is 7 where they do not hold.
    """
    path = home / "ledger.jsonl"
    head, trouble = examine(path) if verify else (None, None)
    if as_json:
        entries = list(entries_of(path, run, kind))
        document = {"ledger": str(path), "verified": verify, "head": head, "trouble": trouble, "entries": entries}
        say(json.dumps(document, indent=2))
        return STATE if trouble else 0
    say(row("N", "AT", "KIND", "TASK", "BYTES", "WHAT"))
    total: Dict[str, int] = {}
    number = 0
    for entry in entries_of(path, run, kind):
        number += 1
        size = left(entry)
        total[str(entry.get("kind"))] = total.get(str(entry.get("kind")), 0) + size
        about = " ".join(str(entry[name]) for name in ("run", "task") if entry.get(name))
        cells = (entry.get("n"), entry.get("at"), entry.get("kind"), about or entry.get("op", ""), f"{size:,}")
        say(row(*map(str, cells), what(entry)))
    sums = ", ".join(f"{kind} {size:,} bytes" for kind, size in sorted(total.items()))
    say(f"{number:,} entries" + (f": {sums}" if sums else f"; {path} has none"))
    if trouble:
        say(f"THE CHAIN IS BROKEN: {trouble}")
    elif head:
        say(f"the chain holds up to entry {head['n']}, {head['hash']}: who keeps that number and hash finds any change")
    return STATE if trouble else 0


def entries_of(path: Path, run: Optional[str], kind: Optional[str] = None) -> Iterator[Entry]:
    """The entries of a ledger in their order, of one run by its name or its identity; what is no entry is left out."""
    for line, match in entry_lines(path):
        try:
            entry = parse(line)
        except ValueError:
            continue
        is_meant = match and kind in (None, entry.get("kind"))
        if is_meant and (
            run is None or run in (str(entry.get("run")).partition(".")[0], *map(entry.get, ("run", "identity")))
        ):
            yield entry


def left(entry: Entry) -> int:
    """The bytes that left by an entry: of an update those from its offset on."""
    size, offset = entry.get("size"), entry.get("offset") if entry.get("kind") == "update" else 0
    return size - offset if isinstance(size, int) and isinstance(offset, int) and entry.get("kind") != "torn" else 0


def what(entry: Entry) -> str:
    """What an entry says beside its size, in a few words."""
    said = []
    if mapping(entry.get("tensors")):
        said.append(f"{entry['tensors'].get('count')} tensors")
    if entry.get("code"):
        said.append(f"code {str(entry['code'])[:12]}")
    metrics = metrics_of(entry)
    said += [f"{name} {value}" for name, value in list(metrics.items())[:MOST_METRICS]]
    if len(metrics) > MOST_METRICS:
        said.append(f"{len(metrics) - MOST_METRICS} more metrics")
    if "epsilon" in mapping(entry.get("privacy")):
        said.append(f"epsilon {entry['privacy']['epsilon']}")
    if entry.get("error"):
        said.append(f"an error of {entry['error']} characters")
    if entry.get("message"):
        said.append("a message of secure aggregation")
    if entry.get("lines"):
        said.append(f"{entry['lines']} lines")
    if entry.get("kind") == "torn":
        said.append(f"the ledger's end was damaged, and is kept as {entry.get('kept')}")
    if entry.get("to"):
        said.append(f"to {entry['to']}")
    return ", ".join(said)


def metrics_of(entry: Entry) -> Dict[str, Any]:
    """The metrics that left by an entry, those of scores under the label of their model."""
    found = dict(mapping(entry.get("metrics")))
    for label, score in mapping(entry.get("scores")).items():
        metrics = mapping(mapping(score).get("metrics"))
        found.update({f"{label}/{name}": value for name, value in metrics.items()})
    return found


def mapping(value: Any) -> Dict[str, Any]:
    """An object of an entry; an empty one where something else stands there, for whoever could write there."""
    return value if isinstance(value, dict) else {}


def row(*cells: str) -> str:
    *columns, last = cells
    return " ".join([*map(str.ljust, columns, WIDTHS), last]).rstrip()


def say(line: str) -> None:
    """A line on stdout; control characters, which a coordinator might have named something with, are replaced."""
    sys.stdout.write("".join(char if char.isprintable() or char == "\n" else "?" for char in line) + "\n")
