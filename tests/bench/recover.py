"""`recover`: a coordinator of 20 nodes is killed in mid-round; how long until the next one has adopted its tasks.

The nodes are servers of their own and share a home, as the machines of a cluster do, and with it one worker.
"""

import subprocess
import time

from tests.bed import LoopbackBed
from tests.bed.processes import wait_until
from tests.bench.digits import Workshop
from tests.bench.measure import LONGEST_S, Row, median, seconds, shown
from tests.bench.servers import OPEN_TO_MANY, environment, loopback
from tests.chaos.storm import COMMAND, RUN, Place

NODES = tuple(f"node-{number:02d}" for number in range(20))
TIMES = 3


def recover(workshop: Workshop) -> list[Row]:
    with loopback("first") as bed:
        share_a_home(bed)
        place = Place(bed.folder / "place", TIMES + 2, bed, nodes=NODES)
        coordinator = place.start("launch", "--run", RUN)
        first, every = [], []
        try:
            for number in range(2, TIMES + 2):
                await_tasks(place, coordinator, f"r{number:04}/", 1)
                coordinator.kill()
                coordinator.wait()
                since, began = len(place.events()), time.perf_counter()
                coordinator = place.start("launch", "--resume", RUN)
                for count, found in ((1, first), (len(NODES), every)):
                    await_tasks(place, coordinator, "r", count, since)
                    found.append(time.perf_counter() - began)
        finally:
            coordinator.kill()
            coordinator.wait()
            place.close()
        bare = [seconds([*COMMAND, "status", RUN], cwd=place.folder, env=environment(bed)) for _ in range(TIMES)]
    return [
        Row(
            name=f"recover: {len(NODES)} nodes, to the first task",
            value=median(first),
            unit="s",
            at_most=2,
            beside=f"{shown(median(every), 's')} until {len(NODES)} are adopted, beside {shown(median(bare), 's')} "
            "of `fedctl status`",
            details={"first": first, "every": every, "status": bare},
        )
    ]


def share_a_home(bed: LoopbackBed) -> None:
    """Add the nodes, all with the home of the first server."""
    shared = bed.nodes["first"].fedctl_home
    environment = {"FEDCTL_HOME": str(shared)}
    for server in bed.add_all(NODES, environment=environment, config=OPEN_TO_MANY):
        server.fedctl_home = shared


def await_tasks(place: Place, coordinator: subprocess.Popen[bytes], key: str, times: int, since: int = 0) -> None:
    """Until the journal says so often that a task was started whose key begins so; raises when the run has ended."""

    def is_there() -> bool:
        if coordinator.poll() is not None:
            raise RuntimeError(f"the run has ended:\n{place.said[-2000:]}")
        fresh = place.events()[since:]
        return sum(event["event"] == "TaskStarted" and event["task"].startswith(key) for event in fresh) >= times

    wait_until(is_there, "the run stands still", LONGEST_S)
