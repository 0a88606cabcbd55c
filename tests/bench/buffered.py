"""`buffered`: how much sooner a model is good where nobody waits for the slowest, on a simulated clock and for real."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fedctl.events import Event, RoundAggregated, UpdateReceived
from fedctl.federation import Schedule
from fedctl.weights import Weights
from tests.bench.digits import SLOWED, Workshop, journal
from tests.bench.measure import Row, median, shown
from tests.bench.simulated import Reached, Simulation

TARGET, SEEDS, SPREAD = 0.88, (0, 1, 2), 0.6
SYNCHRONOUS = Schedule(cohort=20, quorum=1.0)
BUFFERED = Schedule(mode="buffered", buffer=5, concurrency=20)

NODES, FAST_S, SLOW_S = 6, 0.1, 0.5
"""Nodes of this machine that sleep so long at every batch, the last of them longer."""
ROUNDS: Mapping[str, int] = {"synchronous": 10, "buffered": 16}
SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    "synchronous": {"quorum": 1.0},
    "buffered": {"mode": "buffered", "buffer": NODES - 1},
}
GOOD = 0.9


def buffered(workshop: Workshop) -> list[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of products as small as these, threads only wait for each other
    try:
        runs = {
            name: [Simulation(schedule, seed=seed, spread=SPREAD).until(TARGET) for seed in SEEDS]
            for name, schedule in {"synchronous": SYNCHRONOUS, "buffered": BUFFERED}.items()
        }
    finally:
        torch.set_num_threads(threads)
    real = {name: _launched(workshop, name) for name in SCHEDULES}
    return [
        _sooner(runs),
        Row(
            name="buffered: updates that it took",
            value=max(_ratios(runs, "updates")),
            unit="x",
            at_most=1.0,
            beside="those of a synchronous run, at most, of the same three seeds",
        ),
        Row(
            name=f"buffered: {NODES} nodes, one 5x slower",
            value=real["synchronous"]["seconds"] / real["buffered"]["seconds"],
            unit="x",
            at_least=2.0,
            beside=f"sooner at {GOOD:.0%}: {shown(real['buffered']['seconds'], 's')} and "
            f"{shown(real['synchronous']['seconds'], 's')}, of which a model takes "
            f"{shown(real['buffered']['a_round'], 's')} and {shown(real['synchronous']['a_round'], 's')}",
            details=real,
        ),
    ]


def _sooner(runs: Mapping[str, list[Reached]]) -> Row:
    seconds = {name: ", ".join(f"{each.seconds:.0f}" for each in found) for name, found in runs.items()}
    return Row(
        name=f"buffered: simulated, to {TARGET:.0%}",
        value=1 / max(_ratios(runs, "seconds")),
        unit="x",
        at_least=5.0,
        beside=f"sooner at least: {seconds['buffered']} and {seconds['synchronous']} of its seconds, three seeds",
        details={name: [vars_of(each) for each in found] for name, found in runs.items()},
    )


def _ratios(runs: Mapping[str, list[Reached]], what: str) -> list[float]:
    """Of each seed the buffered run's number as a share of the synchronous one's."""
    pairs = zip(runs["buffered"], runs["synchronous"], strict=True)
    return [getattr(ours, what) / getattr(theirs, what) for ours, theirs in pairs]


def vars_of(reached: Reached) -> dict[str, float]:
    return {"seconds": reached.seconds, "updates": reached.updates, "models": reached.models}


def _launched(workshop: Workshop, name: str) -> dict[str, Any]:
    """A real run: the seconds to its first good model from when its first update is in, and those of a model.

    By then the nodes' processes have loaded what they need.
    """
    folder = workshop.folder(NODES, ROUNDS[name])
    (folder / "slowed.py").write_text(SLOWED)
    (folder / "fed.yaml").write_text(_fed_yaml(name))
    workshop.launch(folder)
    events = journal(folder)
    began = next(event.at for event in events if isinstance(event, UpdateReceived))
    closed = {event.round: (event.at - began).total_seconds() for event in events if isinstance(event, RoundAggregated)}
    curve = {number: _accuracy(folder, number) for number in closed}
    reached = next((number for number, value in curve.items() if value >= GOOD), None)
    if reached is None:
        raise AssertionError(f"the {name} run came to {max(curve.values()):.1%} only")
    return {
        "seconds": closed[reached],
        "models": reached,
        "a_round": median(b - a for a, b in zip(closed.values(), list(closed.values())[1:], strict=False)),
        "updates": _updates_until(events, reached),
        "curve": [[closed[number], value] for number, value in curve.items()],
    }


def _updates_until(events: list[Event], number: int) -> int:
    """How many updates came until that round was closed."""
    end = next(event.at for event in events if isinstance(event, RoundAggregated) and event.round == number)
    return sum(isinstance(event, UpdateReceived) and event.at <= end for event in events)


def _accuracy(folder: Path, number: int) -> float:
    """What a round's model makes of all images."""
    path = folder / "runs" / "bench" / "rounds" / f"{number:04d}" / "model.safetensors"
    module = _module(folder, "model").DigitsNet()
    module.load_state_dict(dict(Weights.open(path)))
    x, y = _module(folder, "data").digits()
    with torch.inference_mode():
        return float((module(x).argmax(dim=1) == y).float().mean())


def _module(folder: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _fed_yaml(name: str) -> str:
    """JSON is YAML, too."""
    nodes = [
        {"name": f"site-{number}", "data": {"site": number, "batch_s": SLOW_S if number == NODES - 1 else FAST_S}}
        for number in range(NODES)
    ]
    federation = {
        "name": "digits",
        "seed": 7,
        "rounds": ROUNDS[name],
        "task": {
            "model": "model.py:DigitsNet",
            "model_args": {"lr": 0.02},
            "data": "slowed.py:Slowed",
            "data_args": {"sites": NODES, "alpha": 100, "seed": 7, "batch_size": 32},
            "trainer": {"max_epochs": 2},
            "monitor": {"metric": "val_acc", "mode": "max"},
        },
        "schedule": SCHEDULES[name],
        "defaults": {"accelerator": "cpu", "threads": 1, "slots": NODES},
        "nodes": nodes,
    }
    return json.dumps(federation)
