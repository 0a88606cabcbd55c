"""`start`: from typing `fedctl launch` to its first round, on nodes that have seen nothing of it yet."""

import sys
import time
from datetime import UTC, datetime

from fedctl.events import RoundOpened
from tests.bench.digits import Workshop, journal
from tests.bench.measure import Row, interleaved, median, ratio, seconds, shown

NODES = 5
TIMES = 4
PEER = "import torch, pytorch_lightning"


def start(workshop: Workshop) -> list[Row]:
    measures = {
        "peer": lambda: seconds((sys.executable, "-c", PEER)),
        "launch": lambda: _to_the_first_round(workshop),
    }
    measures["peer"]()  # brings the libraries' files into memory, for both alike
    found = interleaved(measures, TIMES)
    ours, peer = found["launch"], found["peer"]
    return [
        Row(
            name=f"start: launch of {NODES} nodes",
            value=ratio(ours, peer),
            unit="x",
            at_most=1.6,
            beside=f"{shown(median(ours), 's')} beside {shown(median(peer), 's')} of `{PEER}`",
            details={"seconds": ours, "peer_seconds": peer},
        )
    ]


def _to_the_first_round(workshop: Workshop) -> float:
    folder = workshop.folder(NODES, rounds=1)
    began = datetime.now(UTC)
    workshop.launch(folder)
    opened = next(event for event in journal(folder) if isinstance(event, RoundOpened))
    time.sleep(0.2)  # its processes are leaving still
    return (opened.at - began).total_seconds()
