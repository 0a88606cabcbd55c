"""`large`: what a model of 500 MB costs in memory, in time and on the line, with codecs and without.

Memory is what a process cannot give back (RssAnon), its peak over a whole run of two rounds on a node behind a real
server: of the coordinator all of it, of the process that trains what it has more than the same training by itself.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fedctl.events import Event, ModelInitialized, RoundAggregated, RoundOpened, UpdateReceived
from tests.bed.loopback import LoopbackBed
from tests.bench.digits import Workshop, journal
from tests.bench.measure import FEDCTL, LONGEST_S, ROOT, Row, shown
from tests.bench.servers import MB, environment, loopback

NODE, ROUNDS = "alice", 2
LAYERS, SIDE = 20, 2500
"""Twenty tensors of 25 MB."""
SMALLER = 4
CODED = ["delta", "int8", "zstd"]
CODECS: Mapping[str, Any] = {"raw": "none", "coded": {"up": CODED, "down": CODED}}
FLOWER = {"coordinator": "4.0 GB of Flower's ServerApp", "node": "2.2 GB of its ClientApp", "round": "16.6 s of Flower"}
"""As measured on this bed for a model of the same tensors, by Flower 1.36 as it is deployed."""
LOOK_S = 0.005


@dataclass(slots=True)
class Watch:
    """Use it as a context manager: looks every 5 ms at how much memory the processes of each name have.

    `peaks` is the most bytes that one process of a name had (RssAnon), `cpu_s` the processor time of its busiest.
    """

    pids: Mapping[str, Callable[[], Iterable[int]]]
    peaks: dict[str, int] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._thread is not None
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            for name, pids in self.pids.items():
                for pid in pids():
                    with suppress(OSError, StopIteration):  # it has ended
                        self.peaks[name] = max(self.peaks.get(name, 0), anonymous(pid))
                        self.cpu_s[name] = max(self.cpu_s.get(name, 0.0), cpu_s(pid))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a run came to. Bytes are those of one process at most, seconds those of its last round."""

    folder: Path
    peaks: Mapping[str, int]
    cpu_s: Mapping[str, float]
    seconds: Sequence[float]
    carried: int
    payload: int


def large(workshop: Workshop) -> list[Row]:
    alone = trained_alone(LAYERS, SIDE)
    found = {name: launched(workshop, name, LAYERS, SIDE) for name in CODECS}
    one = {}
    print(
        json.dumps(
            {
                "alone": alone,
                **{n: vars_of(f) for n, f in found.items()},
                "one": {n: vars_of(f) for n, f in one.items()},
            },
            default=str,
            indent=1,
        )
    )
    return []


def vars_of(f):
    return {n: getattr(f, n) for n in ("peaks", "cpu_s", "seconds", "carried", "payload")}


def launched(workshop: Workshop, codec: str, layers: int, side: int, *, relayed: bool = False) -> Found:
    """A run of two rounds on one node behind a server, to its end."""
    folder = workshop.path / f"large-{codec}-{layers}-{side}"
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("wide.py"), folder)
    (folder / "fed.yaml").write_text(fed_yaml(codec, layers, side))
    with loopback(NODE, relayed=relayed) as bed:
        argv = [*FEDCTL, "launch", "--run", "bench"]
        with (folder / "said").open("wb") as said:
            process = subprocess.Popen(
                argv, cwd=folder, env=environment(bed), stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
        with Watch({"coordinator": lambda: [process.pid], "node": lambda: children(bed)}) as watch:
            status = process.wait(LONGEST_S)
        if status:
            raise RuntimeError(f"`{' '.join(argv)}` ended with status {status}:\n{(folder / 'said').read_text()}")
        carried = sum(bed.relay(bed.nodes[NODE]).carried(way) for way in ("up", "down")) if relayed else 0
    events = journal(folder)
    opened = {event.round: event.at for event in events if isinstance(event, RoundOpened)}
    closed = {event.round: event.at for event in events if isinstance(event, RoundAggregated)}
    return Found(
        folder=folder,
        peaks=watch.peaks,
        cpu_s=watch.cpu_s,
        seconds=[(closed[number] - opened[number]).total_seconds() for number in closed],
        carried=carried,
        payload=sum(sizes(events)),
    )


def sizes(events):
    for e in events:
        if isinstance(e, (ModelInitialized, RoundAggregated)):
            yield e.model.size
        if isinstance(e, UpdateReceived):
            yield e.update.size


def trained_alone(layers: int, side: int) -> int:
    """The memory of the same training by itself."""
    process = subprocess.Popen([sys.executable, ROOT / "tests" / "bench" / "wide.py", str(layers), str(side)])
    with Watch({"alone": lambda: [process.pid]}) as watch:
        if status := process.wait(LONGEST_S):
            raise RuntimeError(f"the training by itself ended with status {status}")
    return watch.peaks["alone"]


def children(bed: LoopbackBed) -> list[int]:
    """The processes that train on the node."""
    return [int(path.name) for path in bed.nodes[NODE].fedctl_home.glob("runs/*/children/*") if path.name.isdigit()]


def anonymous(pid: int) -> int:
    """RssAnon of a process, in bytes (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1]) * 1024


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, parts[11:13])) / os.sysconf("SC_CLK_TCK")


def fed_yaml(codec: str, layers: int, side: int) -> str:
    """JSON is YAML, too."""
    federation = {
        "name": "wide",
        "seed": 7,
        "rounds": ROUNDS,
        "task": {
            "model": "wide.py:Wide",
            "model_args": {"layers": layers, "side": side},
            "data": "wide.py:Noise",
            "data_args": {"side": side},
            "trainer": {"max_epochs": 1},
            "monitor": {"metric": "val_loss", "mode": "min"},
        },
        "codec": CODECS[codec],
        "defaults": {"accelerator": "cpu", "threads": 1, "slots": 1},
        "nodes": [{"name": NODE, "host": NODE, "python": sys.executable}],
    }
    return json.dumps(federation)
