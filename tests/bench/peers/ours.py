"""The work by fedctl, on nodes of this machine behind sshds of their own, each behind a relay that counts."""

import json
import shutil
import subprocess
import time
from pathlib import Path

from fedctl.events import RoundAggregated, RoundOpened, UpdateReceived
from tests.bed import LoopbackBed
from tests.bench.digits import journal
from tests.bench.measure import ROOT
from tests.bench.peers.course import Course, Seen
from tests.bench.peers.watch import Watch
from tests.bench.peers.work import LR
from tests.bench.servers import OPEN_TO_MANY, environment

HERE = Path(__file__).parent
BIN = ROOT / ".venv" / "bare" / "bin"
"""fedctl without extras, for the coordinator and the nodes."""


def fedctl(folder: Path, images: Path, *, nodes: int, rounds: int, codec: str, lr: float = LR) -> Seen:
    """A run of that many rounds with that codec, as YAML, from `fedctl launch` to its end."""
    for file in (HERE / "work.py", *(HERE / "federation").glob("*.py")):
        shutil.copy(file, folder)
    names = [f"site-{number}" for number in range(nodes)]
    (folder / "fed.yaml").write_text(fed_yaml(names, images, rounds=rounds))
    with LoopbackBed(folder / "bed", relayed=True) as bed:
        servers = bed.add_all(names, config=OPEN_TO_MANY)
        watch = Watch([bed.relay(server) for server in servers], nodes_call=False)
        watch.roots |= {pid: server.name for server in servers for pid in server.processes()}
        watch.marks |= {server.mark.encode(): server.name for server in servers}
        with watch:
            began = time.time()
            argv = [str(BIN / "fedctl"), "launch", "--run", "bench"]
            argv += ["--set", f"codec={codec}", "--set", f"task.model_args.lr={lr}"]
            with (folder / "said").open("w") as said:
                subprocess.run(argv, cwd=folder, env=environment(bed), stdout=said, stderr=said, check=True)
            ended = time.time()
    events = journal(folder)
    opened = {event.round: event.at.timestamp() for event in events if isinstance(event, RoundOpened)}
    closed = {event.round: event.at.timestamp() for event in events if isinstance(event, RoundAggregated)}
    course = Course(
        began=began,
        submitted=began,
        rounds=[(opened[number], closed[number]) for number in sorted(closed)],
        ended=ended,
        model=str(folder / "runs" / "bench" / "model.safetensors"),
        updates=sum(isinstance(event, UpdateReceived) for event in events),
    )
    return Seen(course=course, samples=watch.samples, own_cpu_s=watch.cpu_s)


def fed_yaml(names: list[str], images: Path, *, rounds: int) -> str:
    """A federation of those nodes; JSON is YAML."""
    return json.dumps(
        {
            "name": "mnist",
            "rounds": rounds,
            "task": {"model": "model.py:Mnist", "data": "data.py:Images", "data_args": {"file": str(images)}},
            "schedule": {"quorum": 1.0},
            "defaults": {"accelerator": "cpu", "threads": 1, "python": str(BIN / "python")},
            "nodes": [{"name": name, "host": name, "data": {"site": site}} for site, name in enumerate(names)],
        }
    )
