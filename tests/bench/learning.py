"""`learning`: what codecs cost in accuracy and rounds, and what they save in bytes, beside raw FedAvg in the same run.

Ten nodes hold 4,000 images of MNIST by Dirichlet(0.3); the network has 206,922 parameters; one epoch a round of SGD 0.1
in batches of 32, three seeds; accuracy is that after 30 rounds. Each run is one process and trains plainly, but updates
and models go through the files that really travel, with error feedback both ways. Bytes are those of the files; a model
goes to each node.
"""

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fedctl.arrival import Arrival
from fedctl.codecs.pipeline import Pipeline
from fedctl.codecs.wire import Outgoing
from fedctl.downlink import shorten
from fedctl.partition import dirichlet
from fedctl.share import EVERYTHING
from fedctl.weights import Weights, save
from tests.bench.digits import Workshop
from tests.bench.measure import Row
from tests.bench.peers.work import network
from tests.claims.mnist import images

NODES, ALPHA, ROUNDS, LR, BATCH, SEEDS, GOAL = 10, 0.3, 40, 0.1, 32, (0, 1, 2), 0.95
JUDGED = 30
"""The round at which accuracy is told; the others give each a chance to reach the goal."""
LAST = 5
"""The rounds up to that one, over which accuracy is averaged: one round more or less is noise."""

DELTA, ZSTD, BF16, INT8, INT4 = ({"name": name} for name in ("delta", "zstd", "bf16", "int8", "int4"))


def topk(keep: float) -> dict[str, Any]:
    return {"name": "topk", "keep": keep}


@dataclass(frozen=True)
class Variant:
    """Codecs both ways, and what is asked of them: ratio of updates' bytes, points lost, ratio of all bytes to 95 %."""

    up: Sequence[Mapping[str, Any]] = ()
    down: Sequence[Mapping[str, Any]] = ()
    ratio: float | None = None
    points: float | None = None
    to_goal: float | None = None


NEAR = (DELTA, BF16, ZSTD)
VARIANTS: Mapping[str, Variant] = {
    "raw": Variant(),
    "delta, zstd": Variant(up=(DELTA, ZSTD), down=(DELTA, ZSTD)),
    "int8": Variant(up=(DELTA, INT8, ZSTD), down=NEAR, ratio=5, points=0.3),
    "int4": Variant(up=(DELTA, INT4, ZSTD), down=NEAR, ratio=7.5, points=0.5),
    "topk 0.1": Variant(up=(DELTA, topk(0.1), INT8, ZSTD), down=NEAR, ratio=18, points=0.6),
    "topk 0.01": Variant(up=(DELTA, topk(0.01), INT8, ZSTD), down=NEAR, ratio=150, points=3),
    "both ways": Variant(up=(DELTA, topk(0.1), INT8, ZSTD), down=(DELTA, INT4, ZSTD), to_goal=8),
}


@dataclass(frozen=True)
class Course:
    """One run: the accuracy after each round, the bytes of each, and the CPU seconds that its codecs took."""

    accuracy: Sequence[float]
    up: Sequence[int]
    down: Sequence[int]
    codec_s: float

    @property
    def last(self) -> float:
        return fmean(self.accuracy[JUDGED - LAST : JUDGED])

    @property
    def to_goal(self) -> int:
        """The rounds to the goal; one more than there were where it was not reached."""
        return next((n for n, each in enumerate(self.accuracy, start=1) if each >= GOAL), ROUNDS + 1)

    def bytes_to_goal(self) -> int:
        return sum(self.up[: self.to_goal]) + sum(self.down[: self.to_goal])


def learning(workshop: Workshop) -> list[Row]:
    tasks = [(name, seed, str(workshop.path / f"{name}-{seed}")) for seed in SEEDS for name in VARIANTS]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        courses = dict(zip([task[:2] for task in tasks], pool.starmap(run, tasks, chunksize=1), strict=True))
    return [row for name in VARIANTS for row in _rows(name, [courses[name, seed] for seed in SEEDS], courses)]


def run(name: str, seed: int, folder: str) -> Course:
    """One federation, from the first model to the last."""
    torch.set_num_threads(1)
    place, variant = Path(folder), VARIANTS[name]
    place.mkdir(parents=True)
    up, down = Pipeline.of(variant.up), Pipeline.of(variant.down)
    train, test = (tuple(torch.from_numpy(each[axis]) for axis in ("x", "y")) for each in images())
    shards = dirichlet(train[1].numpy(), sites=NODES, alpha=ALPHA, seed=seed)
    torch.manual_seed(seed)
    net = network()
    model, residuals = place / "model.safetensors", [{} for _ in shards]
    save(model, net.state_dict())
    whole = model.stat().st_size
    accuracy, sent, received, codec_s = [], [], [], 0.0
    cost = whole
    for number in range(1, ROUNDS + 1):
        base, total, came = Weights.open(model), {}, 0
        for node, rows in enumerate(shards):
            state = _trained(net, base, train[0][rows], train[1][rows], seed=1000 * seed + 100 * number + node)
            began = time.process_time()
            update, size, residuals[node] = _over(place, up, state, model, residuals[node], seed=100 * number + node)
            codec_s += time.process_time() - began
            came += size
            for key, tensor in update.items():
                total[key] = total.get(key, 0) + len(rows) / len(train[0]) * tensor.double()
        sent.append(NODES * cost)
        received.append(came)
        save(place / "made.safetensors", {key: tensor.float() for key, tensor in total.items()})
        cost = _onwards(place, down, model, number) if variant.down else _replaced(place, model)
        net.load_state_dict(dict(Weights.open(model)))
        with torch.no_grad():
            accuracy.append(float((net(test[0]).argmax(1) == test[1]).float().mean()))
    return Course(accuracy=accuracy, up=received, down=sent, codec_s=codec_s)


def _trained(net: Any, base: Weights, x: Tensor, y: Tensor, *, seed: int) -> Mapping[str, Tensor]:
    net.load_state_dict(dict(base))
    optimizer = torch.optim.SGD(net.parameters(), LR)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    for rows in order.split(BATCH):
        optimizer.zero_grad()
        functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def _over(
    place: Path, up: Pipeline, state: Mapping[str, Tensor], model: Path, residual: Mapping[str, Tensor], *, seed: int
) -> tuple[Mapping[str, Tensor], int, Mapping[str, Tensor]]:
    """An update as it comes to the coordinator, its bytes on the way, and what stays on the node."""
    base = Weights.open(model)
    if up.is_plain:
        return state, save(place / "wire.safetensors", state).size, {}
    outgoing = Outgoing(pipeline=up, tensors=state, base=base, residual=residual, seed=seed)
    size = outgoing.save(place / "wire.safetensors", base.spec).size
    lost = {name: tensor.clone() for name, tensor in outgoing.lost.items()}
    arrival = Arrival(model=model, share=EVERYTHING, round=1, pipeline=up, seed=seed, controls=False, farthest=None)
    arrival.decode(place / "wire.safetensors", place / "update.safetensors")
    return Weights.open(place / "update.safetensors"), size, lost


def _onwards(place: Path, down: Pipeline, model: Path, number: int) -> int:
    """Make the round's model of the aggregate, as nodes do; the bytes of its way to one."""
    shortened = shorten(
        place / "made.safetensors",
        pipeline=down,
        seed=number,
        previous=model,
        residual=place / f"residual{number - 1}",
        model_out=place / "next.safetensors",
        difference_out=place / "difference.safetensors",
        residual_out=place / f"residual{number}",
    )
    (place / f"residual{number - 1}").unlink(missing_ok=True)
    (place / "next.safetensors").rename(model)
    return shortened.difference.size


def _replaced(place: Path, model: Path) -> int:
    (place / "made.safetensors").rename(model)
    return model.stat().st_size


def _rows(name: str, courses: Sequence[Course], all_of_them: Mapping[tuple[str, int], Course]) -> list[Row]:
    raw = [all_of_them["raw", seed] for seed in SEEDS]
    variant = VARIANTS[name]
    beside = f"raw {100 * fmean([each.last for each in raw]):.2f} %"
    lost = 100 * (fmean([each.last for each in raw]) - fmean([each.last for each in courses]))
    rounds = fmean([each.to_goal for each in courses])
    details = {
        "accuracy": [round(each.last, 4) for each in courses],
        "rounds_to_goal": [each.to_goal for each in courses],
        "codec_s": [round(each.codec_s, 2) for each in courses],
    }
    rows = [
        Row(
            name=f"learning {name}: accuracy lost",
            value=lost,
            unit="points",
            at_most=variant.points,
            beside=beside,
            details=details,
        )
    ]
    if name == "raw":
        return [
            Row(
                name="learning raw: accuracy", value=100 * fmean([each.last for each in raw]), unit="%", details=details
            )
        ]
    fewer = fmean([sum(one.up) / sum(other.up) for one, other in zip(raw, courses, strict=True)])
    in_all = fmean([one.bytes_to_goal() / other.bytes_to_goal() for one, other in zip(raw, courses, strict=True)])
    more_rounds = rounds / fmean([each.to_goal for each in raw])
    rows += [
        Row(name=f"learning {name}: updates fewer bytes", value=fewer, unit="x", at_least=variant.ratio),
        Row(name=f"learning {name}: all bytes to {GOAL:.0%} fewer", value=in_all, unit="x", at_least=variant.to_goal),
        Row(
            name=f"learning {name}: rounds to {GOAL:.0%}",
            value=more_rounds,
            unit="x",
            at_most=1.3 if variant.to_goal else None,
            beside=f"raw {fmean([each.to_goal for each in raw]):.1f} rounds",
        ),
    ]
    return rows
