"""`hello`: 64 nodes reached, their keys checked, their agents greeted, beside bare paramiko's `exec true` on each.

Each node is a server of its own, as in life: one server would turn so many logins at once away.
"""

from tests.bench.digits import Workshop
from tests.bench.measure import Row, median, ratio, shown
from tests.bench.servers import client, loopback, reached

NODES = tuple(f"node-{number:02d}" for number in range(64))
TIMES = 5


def hello(workshop: Workshop) -> list[Row]:
    ours, bare = [], []
    with loopback(*NODES) as bed:
        client(bed, "hellos", nodes=NODES)  # installs the agents
        for _ in range(TIMES):
            ours.append(client(bed, "hellos", nodes=NODES) or {})
            bare.append(client(bed, "bare_hellos", servers=reached(bed, NODES)) or {})
    seconds, bare_seconds = ([found["seconds"] for found in runs] for runs in (ours, bare))
    return [
        Row(
            name=f"hello: {len(NODES)} nodes",
            value=ratio(seconds, bare_seconds),
            unit="x",
            at_most=2.5,
            beside=f"{shown(median(seconds), 's')}, of which "
            f"{shown(median(found['of_which_resolving'] for found in ours), 's')} reads ~/.ssh/config, beside "
            f"{shown(median(bare_seconds), 's')} of bare paramiko",
            details={"runs": ours, "bare_runs": bare},
        )
    ]
