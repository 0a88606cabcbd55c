"""`many`: eight nodes at once, a file each, through one process, beside as many `ssh ... cat`."""

import time
from pathlib import Path
from typing import Any

from tests.bed.bed import Bed
from tests.bench.digits import Workshop
from tests.bench.measure import Row, median, ratio, shown
from tests.bench.servers import MB, cat, client, finished, loopback, open_line
from tests.bench.stream import write_noise

NODES = tuple(f"node-{number}" for number in range(8))
SIZE = 128 * 2**20
TIMES = 3


def many(workshop: Workshop) -> list[Row]:
    with loopback(*NODES) as bed:
        open_line(bed, *NODES)
        source = bed.folder / "source"
        digest = write_noise(source, SIZE)
        (bed.folder / "target").mkdir()
        ways = {way: _one_way(bed, source, digest, up=way == "up") for way in ("down", "up")}
    peak = max(found["peak_mb"] for runs, _ in ways.values() for found in runs)
    return [
        *(_row(way, runs, ssh) for way, (runs, ssh) in ways.items()),
        Row(
            name=f"many: memory of {len(NODES)} transfers",
            value=peak,
            unit="MB",
            at_most=150,
            beside=f"the peak of a process that moves {SIZE * len(NODES) / MB:.0f} MB",
        ),
    ]


def _row(way: str, runs: list[dict[str, Any]], ssh: list[float]) -> Row:
    ours = [found["seconds"] for found in runs]
    speed, peer = (SIZE * len(NODES) / MB / median(seconds) for seconds in (ours, ssh))
    return Row(
        name=f"many: {len(NODES)} x 128 MiB {way}, of ssh",
        value=ratio(ssh, ours),
        unit="x",
        at_least=0.6,
        beside=f"{shown(speed, 'MB/s')} with SHA-256 in one process beside {shown(peer, 'MB/s')} of "
        f"{len(NODES)} `ssh cat`",
        details={"runs": runs, "ssh_seconds": ssh},
    )


def _one_way(bed: Bed, source: Path, digest: str, *, up: bool) -> tuple[list[dict[str, Any]], list[float]]:
    arguments = {"nodes": NODES, "source": str(source), "target": str(bed.folder / "target"), "digest": digest}
    client(bed, "move_all", up=up, **arguments)  # installs the agents
    runs, ssh = [], []
    for _ in range(TIMES):
        runs.append(client(bed, "move_all", up=up, **arguments) or {})
        began = time.perf_counter()
        finished([cat(bed, node, source, bed.folder / "target" / f"{node}.ssh", up=up) for node in NODES])
        ssh.append(time.perf_counter() - began)
    return runs, ssh
