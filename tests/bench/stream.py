"""`stream`: one large file over one line, beside `ssh ... cat` on an open line too, and paramiko's own SFTP."""

import hashlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bed.bed import Bed
from tests.bench.digits import Workshop
from tests.bench.measure import Row, interleaved, median, ratio, shown
from tests.bench.servers import MB, cat, client, finished, loopback, open_line, reached

SIZE = 512 * 2**20
TIMES = 3
STALLED_S = 60.0
"""`SFTPClient.get` may stand still; what took longer than this does not count."""


def stream(workshop: Workshop) -> list[Row]:
    with loopback("alice") as bed:
        open_line(bed, "alice")
        source = bed.folder / "source"
        digest = write_noise(source, SIZE)
        return [row for up in (False, True) for row in _one_way(bed, source, digest, up=up)]


def write_noise(path: Path, size: int) -> str:
    """A file of bytes that nothing can compress; returns its SHA-256."""
    running = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(0, size, 2**20):
            piece = os.urandom(2**20)
            running.update(piece)
            file.write(piece)
    return running.hexdigest()


def _one_way(bed: Bed, source: Path, digest: str, *, up: bool) -> list[Row]:
    way = "up" if up else "down"
    target = bed.folder / "target"
    target.mkdir(exist_ok=True)
    server = reached(bed, ["alice"])[0]
    arguments: dict[str, Any] = {"source": str(source), "up": up}
    measures: dict[str, Callable[[], float]] = {
        "fedctl": lambda: _seconds(client(bed, "move", node="alice", target=str(target), digest=digest, **arguments)),
        "ssh": lambda: _cat(bed, source, target / "ssh", up=up, login=False),
        "ssh with its login": lambda: _cat(bed, source, target / "ssh", up=up, login=True),
        "sftp": lambda: _seconds(
            client(bed, "bare_sftp", bound_s=STALLED_S, server=server, target=str(target / "sftp"), **arguments)
        ),
    }
    measures["fedctl"]()  # installs the agent
    found = interleaved(measures, TIMES)
    ours, ssh = found["fedctl"], found["ssh"]
    ended = [(a, b) for a, b in zip(found["sftp"], ours, strict=True) if math.isfinite(a)]
    speed = {name: SIZE / MB / median(x for x in seconds if math.isfinite(x)) for name, seconds in found.items()}
    stalled = TIMES - len(ended)
    return [
        Row(
            name=f"stream: 512 MiB {way}, of ssh",
            value=ratio(ssh, ours),
            unit="x",
            at_least=0.70 if up else 0.65,
            beside=f"{shown(speed['fedctl'], 'MB/s')} with SHA-256 beside {shown(speed['ssh'], 'MB/s')} of `ssh cat` "
            f"({shown(speed['ssh with its login'], 'MB/s')} with its login)",
            details={"seconds": found, "mb_per_s": speed},
        ),
        Row(
            name=f"stream: 512 MiB {way}, of paramiko's sftp",
            value=median(a / b for a, b in ended),
            unit="x",
            at_least=1.6 if up else 2,
            beside=f"beside {shown(speed['sftp'], 'MB/s')}"
            + (f"; {stalled} of {TIMES} stood still for {STALLED_S:.0f} s" if stalled else ""),
            details={"stalled": stalled},
        ),
    ]


def _cat(bed: Bed, source: Path, target: Path, *, up: bool, login: bool) -> float:
    target.unlink(missing_ok=True)
    began = time.perf_counter()
    finished([cat(bed, "alice", source, target, up=up, login=login)])
    return time.perf_counter() - began


def _seconds(found: dict[str, Any] | None) -> float:
    return math.nan if found is None else float(found["seconds"])
