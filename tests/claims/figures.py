"""What the claims came to: a row for the table, and a file of curves that `docs/make_claims_svg.py` draws."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A claim in words, what is asserted of it, and what was seen."""

    claim: str
    bound: str
    seen: str


ROWS: list[Row] = []


def record(claim: str, *, bound: str, seen: str) -> None:
    """Remember a row for the table of this session."""
    ROWS.append(Row(claim=claim, bound=bound, seen=seen))


def save(name: str, series: Mapping[str, Sequence[float]]) -> None:
    """Leave values between 0 and 1, round by round or node by node, as `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    rounded = {label: [round(each, 4) for each in values] for label, values in series.items()}
    (RESULTS / f"{name}.json").write_text(json.dumps(rounded, indent=1) + "\n")


def table() -> str:
    """The rows in aligned columns."""
    cells = [("claim", "asserted", "seen"), *(tuple(asdict(row).values()) for row in ROWS)]
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )
