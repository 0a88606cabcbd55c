"""`dead-line`: how long until a line over which nothing passes any more is found dead, beside paramiko's keepalives."""

import json
import math
import select
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bed import open_bed, which
from tests.bed.bed import Bed
from tests.bench.digits import Workshop
from tests.bench.measure import ROOT, Row, shown
from tests.bench.servers import client_argv, environment, reached

BOUND_S = 40.0


def dead_line(workshop: Workshop) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="fedctl-bench-") as folder, open_bed(Path(folder) / "bed") as bed:
        server = bed.add("alice")
        watchers = [
            _watch(bed, "until_lost", node="alice"),
            _watch(bed, "bare_until_lost", server=reached(bed, ["alice"])[0]),
        ]
        try:
            for watcher in watchers:
                assert watcher.stdout is not None
                watcher.stdout.readline()  # it is open
            bed.cut(server)
            began = time.monotonic()
            ours, bare = (_lost_at(watcher, began + BOUND_S) - began for watcher in watchers)
        finally:
            for watcher in watchers:
                watcher.kill()
                watcher.communicate()
    return [
        Row(
            name="dead-line: until it is noticed",
            value=ours,
            unit="s",
            at_most=20,
            beside=f"bare paramiko's keepalives: {f'not in {BOUND_S:.0f} s' if math.isnan(bare) else shown(bare, 's')}",
            details={"bed": which(), "seconds": None if math.isnan(ours) else ours},
        )
    ]


def _watch(bed: Bed, action: str, **arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        client_argv(action, arguments),
        env=environment(bed),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _lost_at(watcher: subprocess.Popen[str], deadline: float) -> float:
    """When it found its line dead; NaN when not by then."""
    assert watcher.stdout is not None
    if not select.select([watcher.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
        return math.nan
    return float(json.loads(watcher.stdout.readline())["at"])
