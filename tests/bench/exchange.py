"""`exchange`: what a small request costs on a line that is open, beside bare paramiko's `exec true` on one."""

from typing import Any

from tests.bench.digits import Workshop
from tests.bench.measure import Row, median, shown
from tests.bench.servers import client, loopback, reached

COUNT, BARE_COUNT = 200, 50
TIMES = 3


def exchange(workshop: Workshop) -> list[Row]:
    ours: list[dict[str, Any]] = []
    bare: list[dict[str, Any]] = []
    with loopback("alice") as bed:
        for _ in range(TIMES):
            ours.append(client(bed, "exchanges", node="alice", count=COUNT) or {})
            bare.append(client(bed, "bare_exchanges", server=reached(bed, ["alice"])[0], count=BARE_COUNT) or {})
    ms = median(found["seconds"] for found in ours) * 1000
    bare_ms = median(found["seconds"] for found in bare) * 1000
    return [
        Row(
            name="exchange: with an agent",
            value=ms,
            unit="ms",
            at_most=5,
            beside=f"beside {shown(bare_ms, 'ms')} of bare paramiko's `exec true`",
            details={"seconds": ours, "bare_seconds": bare},
        )
    ]
