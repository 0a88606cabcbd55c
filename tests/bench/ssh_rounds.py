"""`ssh-rounds`: how much longer a round takes on nodes behind SSH than on nodes of this machine."""

from pathlib import Path

from fedctl.events import RoundAggregated, RoundOpened
from tests.bed.bed import Bed
from tests.bench.digits import Workshop, journal, node_name
from tests.bench.measure import FEDCTL, Row, median, run, shown
from tests.bench.servers import environment, loopback, on_servers

NODES = 4
ROUNDS = 12
WARM = 3
"""The first round that counts."""
TIMES = 2


def ssh_rounds(workshop: Workshop) -> list[Row]:
    over_ssh: list[float] = []
    local: list[float] = []
    with loopback(*(node_name(f"{number:02d}") for number in range(NODES))) as bed:
        for _ in range(TIMES):
            local += _rounds(workshop, bed, is_local=True)
            over_ssh += _rounds(workshop, bed, is_local=False)
    return [
        Row(
            name=f"ssh-rounds: more than {NODES} local nodes",
            value=median(over_ssh) - median(local),
            unit="s",
            at_most=0.15,
            beside=f"{shown(median(over_ssh), 's')} beside {shown(median(local), 's')} a round",
            details={"ssh": over_ssh, "local": local},
        )
    ]


def _rounds(workshop: Workshop, bed: Bed, *, is_local: bool) -> list[float]:
    """The seconds of each warm round of a new run."""
    folder: Path = workshop.folder(NODES, ROUNDS)
    if not is_local:
        on_servers(folder)
    run([*FEDCTL, "launch", "--run", "bench"], cwd=folder, env=environment(bed))
    events = journal(folder)
    opened = {event.round: event.at for event in events if isinstance(event, RoundOpened)}
    closed = {event.round: event.at for event in events if isinstance(event, RoundAggregated)}
    return [(closed[number] - opened[number]).total_seconds() for number in range(WARM, ROUNDS + 1)]
