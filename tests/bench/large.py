"""`large`: what a model of 500 MB costs in memory, in time and on the line, with codecs and without.

It runs for two rounds on one node behind a real server. Memory is what a process cannot give back (RssAnon), at its
worst in the whole run: of the coordinator all of it, of the process that trains what it has beyond the same training by
itself.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedctl.arrival import Arrival
from fedctl.codecs.pipeline import Pipeline
from fedctl.codecs.wire import Outgoing
from fedctl.downlink import shorten
from fedctl.events import Event, ModelInitialized, RoundAggregated, RoundOpened, UpdateReceived
from fedctl.rundir import RunDir
from fedctl.share import EVERYTHING
from fedctl.weights import Weights, save
from tests.bed.bed import Bed
from tests.bed.loopback import LoopbackBed
from tests.bench.digits import Workshop, journal
from tests.bench.measure import FEDCTL, LONGEST_S, Row, shown
from tests.bench.memory import Watch
from tests.bench.servers import MB, environment, loopback

NODE, ROUNDS, SEED = "alice", 2, 7
LARGE, SINGLE, SMALLER = (20, 2500), (1, 11180), (4, 2500)
"""Layers and their sides: 20 tensors of 25 MB, one of 500 MB, four of 25 MB."""
STEPS = ("delta", "int8", "zstd")
CODECS: Mapping[str, Any] = {"raw": "none", "coded": {"up": STEPS, "down": STEPS}}
BYTES = 1.03
FLOWER = {"coordinator": "4.0 GB of Flower's server app", "node": "2.2 GB of its client app", "round": "16.6 s of it"}
"""As measured before on a quiet machine of two processors: 1.42.0 as it is deployed, tensors alike, memory as RSS."""
WIDE = Path(__file__).with_name("wide.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a run came to: its folder, the memory of its processes, the seconds of its rounds, and the bytes carried."""

    folder: Path
    watch: Watch
    seconds: Sequence[float]
    carried: int


def large(workshop: Workshop) -> list[Row]:
    rows = [_line(workshop)]
    alone = trained_alone(*LARGE)
    for codec in CODECS:
        found = launched(workshop, codec, *LARGE)
        rows += [*_memory(found, f"large: {codec}", alone, model=size(*LARGE)), _round(found, codec)]
        if codec == "coded":
            rows += _cpu(RunDir(found.folder / "runs" / "bench"), workshop.path)
        shutil.rmtree(found.folder)
    single = launched(workshop, "coded", *SINGLE)
    return rows + _memory(single, "large: coded, one tensor", trained_alone(*SINGLE), model=None)


def launched(workshop: Workshop, codec: str, layers: int, side: int, *, rounds: int = ROUNDS) -> Found:
    """A run to its end, as the run `bench`."""
    folder = workshop.path / f"large-{codec}-{layers}-{side}"
    folder.mkdir()
    shutil.copy(WIDE, folder)
    (folder / "fed.yaml").write_text(fed_yaml(codec, layers, side, rounds))
    with loopback(NODE, relayed=rounds == 1) as bed:
        argv = [*FEDCTL, "launch", "--run", "bench"]
        with (folder / "said").open("w+") as said:
            process = subprocess.Popen(
                argv, cwd=folder, env=environment(bed), stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
            with Watch({"coordinator": lambda: [process.pid], "node": lambda: children(bed)}) as watch:
                status = process.wait(LONGEST_S)
            if status:
                said.seek(0)
                raise RuntimeError(f"`{' '.join(argv)}` ended with status {status}:\n{said.read()}")
        carried = _carried(bed) if rounds == 1 else 0
    events = journal(folder)
    opened = {event.round: event.at for event in events if isinstance(event, RoundOpened)}
    closed = {event.round: event.at for event in events if isinstance(event, RoundAggregated)}
    seconds = [(closed[number] - opened[number]).total_seconds() for number in sorted(closed)]
    return Found(folder=folder, watch=watch, seconds=seconds, carried=carried)


def trained_alone(layers: int, side: int) -> int:
    """The memory of the same training by itself, in bytes."""
    argv = [sys.executable, str(WIDE), str(layers), str(side)]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with Watch({"alone": lambda: [process.pid]}) as watch:
        if status := process.wait(LONGEST_S):
            raise RuntimeError(f"`{' '.join(argv)}` ended with status {status}")
    return watch.anonymous["alone"]


def children(bed: Bed) -> list[int]:
    """The processes that train on the node."""
    return [int(path.name) for path in bed.nodes[NODE].fedctl_home.glob("runs/*/children/*")]


def size(layers: int, side: int) -> int:
    """The bytes of a model's values."""
    return layers * side * side * 4


def fed_yaml(codec: str, layers: int, side: int, rounds: int) -> str:
    """JSON is YAML, too."""
    federation = {
        "name": "wide",
        "seed": SEED,
        "rounds": rounds,
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


def _line(workshop: Workshop) -> Row:
    found = launched(workshop, "raw", *SMALLER, rounds=1)
    payload = sum(_sizes(journal(found.folder)))
    shutil.rmtree(found.folder)
    return Row(
        name="large: bytes on the line over those of models and updates",
        value=found.carried / payload,
        unit="x",
        at_most=BYTES,
        beside=f"{shown(found.carried / MB, 'MB')} with SSH and all, of {shown(size(*SMALLER) / MB, 'MB')} down twice "
        "and up once",
        details={"carried": found.carried, "payload": payload},
    )


def _carried(bed: LoopbackBed) -> int:
    line = bed.relay(bed.nodes[NODE])
    return line.carried("up") + line.carried("down")


def _sizes(events: Sequence[Event]) -> Iterator[int]:
    """Each model that went to the node, be it to be scored, and each update that came of it."""
    for event in events:
        match event:
            case ModelInitialized() | RoundAggregated():
                yield event.model.size
            case UpdateReceived():
                yield event.update.size
            case _:
                pass


def _memory(found: Found, name: str, alone: int, *, model: int | None) -> list[Row]:
    watch, bound = found.watch, None if model is None else model / MB
    more = watch.anonymous["node"] - alone
    beside = {who: f"beside {theirs}; " if model else "" for who, theirs in FLOWER.items()}
    return [
        Row(
            name=f"{name}, memory of the coordinator",
            value=watch.anonymous["coordinator"] / MB,
            unit="MB",
            at_most=bound,
            beside=f"{beside['coordinator']}{_resident(watch, 'coordinator')}",
            details=watch.anonymous,
        ),
        Row(
            name=f"{name}, memory of a node beyond the training",
            value=more / MB,
            unit="MB",
            at_most=bound,
            beside=f"on top of {shown(alone / MB, 'MB')}; {beside['node']}{_resident(watch, 'node')}",
            details={"alone": alone, **watch.anonymous},
        ),
    ]


def _resident(watch: Watch, name: str) -> str:
    return f"with the files that it has mapped {shown(watch.resident[name] / 1e9, 'GB')}"


def _round(found: Found, codec: str) -> Row:
    spent = ", ".join(f"{shown(found.watch.cpu_s[name], 's')} of the {name}" for name in ("coordinator", "node"))
    return Row(
        name=f"large: {codec}, a round",
        value=found.seconds[-1],
        unit="s",
        beside=f"beside {FLOWER['round']}; the whole run took {spent} in CPU",
        details={"seconds": found.seconds, "cpu_seconds": found.watch.cpu_s},
    )


def _cpu(run: RunDir, folder: Path) -> list[Row]:
    """The codecs' part of the last round's work once more, by its own files."""
    base, update, wire = run.round_model(ROUNDS - 1), run.update(ROUNDS, NODE), folder / "wire"
    pipeline, spec = Pipeline.of([{"name": name} for name in STEPS]), Weights.open(base).spec
    residual = Weights.open(run.residual(ROUNDS - 1))

    def hand_in() -> None:
        outgoing = Outgoing(
            pipeline=pipeline, tensors=Weights.open(update), base=Weights.open(base), residual=residual, seed=SEED
        )
        outgoing.save(wire, spec)
        save(folder / "lost", outgoing.lost)

    def take_in() -> None:
        arrival = Arrival(
            model=base,
            share=EVERYTHING,
            round=ROUNDS,
            pipeline=pipeline,
            seed=SEED,
            controls=False,
            farthest=None,
        )
        arrival.decode(wire, folder / "decoded")

    def go_down() -> None:
        shorten(
            update,
            pipeline=pipeline,
            seed=1,
            previous=base,
            residual=residual.path,
            model_out=folder / "model",
            difference_out=folder / "difference",
            residual_out=folder / "residual",
        )

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        spent = {name: _cpu_s(work) for name, work in (("node", hand_in), ("up", take_in), ("down", go_down))}
    finally:
        torch.set_num_threads(threads)
    told = {
        "node": ("a node's codecs", "encodes an update, and what that loses"),
        "up": ("the coordinator's codecs, an update", "decodes it"),
        "down": ("the coordinator's codecs, a model", "encodes and decodes it, and what that loses"),
    }
    return [
        Row(
            name=f"large: CPU of {what}",
            value=spent[name],
            unit="s",
            beside=f"{does}, {', '.join(STEPS)}, files and all",
        )
        for name, (what, does) in told.items()
    ]


def _cpu_s(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
