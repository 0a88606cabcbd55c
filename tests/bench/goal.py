"""`goal`: what a federation over SSH costs until its model is good enough, raw and with codecs both ways.

Ten nodes of this machine, each behind an sshd and a relay that counts, hold MNIST's images by Dirichlet(0.3) and train
the network of 206,922 parameters. Every byte of every line counts until the round that reaches the goal: SSH, the
agent, the code, the first model, all requests. One seed: thirty rounds over ten servers take a while.
"""

from dataclasses import dataclass
from pathlib import Path

from tests.bench.digits import Workshop
from tests.bench.measure import Row
from tests.bench.peers.course import Seen
from tests.bench.peers.images import accuracy, write
from tests.bench.peers.stage import staged

NODES, ALPHA, ROUNDS, LR, GOAL = 10, 0.3, 40, 0.1, 0.95
CODECS = {"raw": "none", "codecs": "{up: [delta, topk: {keep: 0.1}, int8, zstd], down: [delta, int4, zstd]}"}
FEWER, MORE_ROUNDS = 8.0, 1.3


@dataclass(frozen=True)
class Reached:
    """The round that reached the goal, and what the lines had carried by then, in bytes; the best accuracy."""

    round: int
    carried: int
    best: float


def goal(workshop: Workshop) -> list[Row]:
    images = workshop.path / "goal.npz"
    write(images, NODES, alpha=ALPHA)
    found = {}
    for name, codec in CODECS.items():
        folder = workshop.path / f"goal-{name}"
        seen, _ = staged("fedctl", folder, images, nodes=NODES, rounds=ROUNDS, codec=codec, lr=LR)
        found[name] = reached(seen, folder, images)
    raw, coded = found["raw"], found["codecs"]
    details = {name: vars(each) for name, each in found.items()}
    return [
        Row(
            name=f"goal: all bytes to {GOAL:.0%} fewer",
            value=raw.carried / coded.carried,
            unit="x",
            at_least=FEWER,
            beside=f"raw {raw.carried / 1e6:.0f} MB",
            details=details,
        ),
        Row(
            name=f"goal: rounds to {GOAL:.0%}",
            value=coded.round / raw.round,
            unit="x",
            at_most=MORE_ROUNDS,
            beside=f"raw {raw.round}",
        ),
    ]


def reached(seen: Seen, folder: Path, images: Path) -> Reached:
    """The first round whose model reaches the goal; the one after the last where none does."""
    models = sorted((folder / "runs" / "bench" / "rounds").glob("*/model.safetensors"))[1:]
    scores = [accuracy(model, images) for model in models]
    number = next((n for n, score in enumerate(scores, start=1) if score >= GOAL), len(scores) + 1)
    closed = seen.course.rounds[min(number, len(scores)) - 1][1]
    by_then = [each for each in seen.samples if each.at <= closed] or seen.samples[:1]
    return Reached(round=number, carried=by_then[-1].to_nodes + by_then[-1].from_nodes, best=max(scores))
