"""`startup`: what should feel immediate, beside the import of what it cannot do without."""

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench.digits import Workshop
from tests.bench.measure import FEDCTL, Row, interleaved, median, ratio, seconds, shown

TIMES = 15
PEER = "import typer, rich"


def startup(workshop: Workshop) -> list[Row]:
    folder = workshop.finished(nodes=4, rounds=12)
    commands: dict[str, Sequence[str]] = {
        "peer": (sys.executable, "-c", PEER),
        "--help": (*FEDCTL, "--help"),
        "status --json": (*FEDCTL, "status", "--json"),
    }
    for argv in commands.values():
        seconds(argv, cwd=folder)  # compiles what is not compiled yet, and does not count
    found = interleaved({name: _timed(argv, folder) for name, argv in commands.items()}, TIMES)
    peer = found.pop("peer")
    targets = {"--help": 1.5, "status --json": 2.5}
    return [
        Row(
            name=f"startup: {name}",
            value=ratio(ours, peer),
            unit="x",
            at_most=targets[name],
            beside=f"{shown(median(ours), 's')} beside {shown(median(peer), 's')} of `{PEER}`",
            details={"seconds": ours, "peer_seconds": peer},
        )
        for name, ours in found.items()
    ]


def _timed(argv: Sequence[str], folder: Path):
    return lambda: seconds(argv, cwd=folder)
