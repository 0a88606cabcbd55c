"""`provisioning`: what it costs to provision nodes that lack nothing."""

from tests.bench.digits import Workshop
from tests.bench.measure import FEDCTL, Row, median, run, seconds, shown
from tests.bench.servers import client, environment, loopback, on_servers

NODES = tuple(f"site-{number:02d}" for number in range(20))
TIMES = 5


def provisioning(workshop: Workshop) -> list[Row]:
    with loopback(*NODES) as bed:
        folder = workshop.folder(len(NODES), rounds=1)
        on_servers(folder)
        argv = [*FEDCTL, "provision"]
        run(argv, cwd=folder, env=environment(bed))
        found = [seconds(argv, cwd=folder, env=environment(bed)) for _ in range(TIMES)]
        counted = client(bed, "provision", file=str(folder / "fed.yaml")) or {}
    asked = sum(counted["asked"].values())
    return [
        Row(
            name=f"provisioning: {len(NODES)} nodes again",
            value=median(found),
            unit="s",
            at_most=2,
            beside=f"{shown(counted['seconds'], 's')} within the command; every node is on this machine",
            details={"seconds": found, "client": counted},
        ),
        Row(
            name="provisioning: requests a node",
            value=asked / len(NODES),
            at_most=1,
            beside="nothing was sent" if not counted["changed"] else "something was sent again",
            details=counted,
        ),
    ]
