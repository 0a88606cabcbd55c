"""`privacy`: what each promise costs in accuracy, bytes and seconds, beside the same federation without one.

Twenty nodes hold 1,797 digits alike and train a network of 666 weights, three epochs a round for twelve rounds, by
`fedctl launch`. Accuracy is that of the last three rounds on the nodes' validation images, ε that at δ = 0.001. A
guarantee per node hides all that a node has among twenty, one per example hides each of its 72 images: the ε of the
two are not to be compared.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from fedctl.events import RoundAggregated, UpdateReceived
from tests.bench.digits import SEED, Workshop, journal
from tests.bench.measure import FEDCTL, Row, run

NODES, ROUNDS, LAST, DELTA = 20, 12, 3, 1e-3
SECURE: Mapping[str, Any] = {"secure_aggregation": {}}


def dp(mode: str, noise: float, clip: float, **more: Any) -> dict[str, Any]:
    return {"differential_privacy": {"mode": mode, "noise": noise, "clip": clip, "delta": DELTA, **more}}


@dataclass(frozen=True)
class Variant:
    """What fed.yaml promises, and the points of accuracy that it may cost."""

    privacy: Mapping[str, Any]
    points: float | None = None


VARIANTS: Mapping[str, Variant] = {
    "none": Variant({}),
    "secure": Variant(SECURE, points=1),
    "central 0.5": Variant(dp("central", 0.5, 2.0)),
    "central 1": Variant(dp("central", 1.0, 2.0)),
    "central 1, adaptive": Variant(dp("central", 1.0, 2.0, adaptive=True)),
    "distributed 1": Variant({**SECURE, **dp("distributed", 1.0, 2.0)}),
    "local 1": Variant(dp("local", 1.0, 1.0)),
    "local 2": Variant(dp("local", 2.0, 1.0)),
}


def federation(variant: Variant) -> dict[str, Any]:
    """What fed.yaml says."""
    return {
        "name": "digits",
        "seed": SEED,
        "rounds": ROUNDS,
        "task": {
            "model": "model.py:DigitsNet",
            "model_args": {"lr": 0.3, "momentum": 0.0, "channels": 4},
            "data": "data.py:DigitsData",
            "data_args": {"sites": NODES, "alpha": 100, "seed": SEED, "batch_size": 12},
            "trainer": {"max_epochs": 3},
            "monitor": {"metric": "val_acc", "mode": "max"},
        },
        "privacy": variant.privacy or "none",
        "defaults": {"accelerator": "cpu", "threads": 1},
        "nodes": [{"name": "site-{i:02d}", "count": NODES, "host": "local", "data": {"site": "{i}"}}],
    }


@dataclass(frozen=True)
class Course:
    """One run."""

    accuracy: float
    epsilon: float | None
    received: int
    sent: int
    round_s: float


def privacy(workshop: Workshop) -> list[Row]:
    courses = {name: _course(workshop, variant) for name, variant in VARIANTS.items()}
    return [row for name in VARIANTS for row in _rows(name, courses[name], courses["none"])]


def _course(workshop: Workshop, variant: Variant) -> Course:
    folder = workshop.folder(NODES, ROUNDS)
    (folder / "fed.yaml").write_text(json.dumps(federation(variant)))  # JSON is YAML
    workshop.launch(folder)
    return _read(folder, json.loads(run([*FEDCTL, "status", "bench", "--json"], cwd=folder)))


def _read(folder: Path, status: Mapping[str, Any]) -> Course:
    events = journal(folder)
    closed = [event for event in events if isinstance(event, RoundAggregated)]
    accuracies = [each["metrics"]["val_acc"] for each in status["history"]]
    seconds = [(later.at - earlier.at).total_seconds() for earlier, later in pairwise(closed)]
    return Course(
        accuracy=100 * fmean(accuracies[-LAST:]),
        epsilon=closed[-1].epsilon,
        received=sum(event.bytes.received for event in events if isinstance(event, UpdateReceived)),
        sent=status["bytes"]["sent"],
        round_s=sorted(seconds)[len(seconds) // 2],
    )


def _rows(name: str, course: Course, none: Course) -> list[Row]:
    details = {"epsilon": course.epsilon, "delta": DELTA, "sent": course.sent, "received": course.received}
    told = "" if course.epsilon is None else f", ε {course.epsilon:.1f}"
    rows = [
        Row(
            name=f"privacy {name}: accuracy",
            value=course.accuracy,
            unit="%",
            at_least=None if VARIANTS[name].points is None else none.accuracy - (VARIANTS[name].points or 0),
            beside=f"none {none.accuracy:.1f} %{told}",
            details=details,
        ),
        Row(name=f"privacy {name}: a round", value=course.round_s, unit="s", beside=f"none {none.round_s:.2f} s"),
    ]
    if name != "none":
        more = course.received / none.received
        rows.append(Row(name=f"privacy {name}: bytes of updates", value=more, unit="x", at_most=1.2))
    return rows
