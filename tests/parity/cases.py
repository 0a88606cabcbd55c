"""What the strategies are compared on: ordinary rounds and hostile ones, as float32 arrays and plain numbers."""

from dataclasses import dataclass

import numpy as np

SHAPES = {"layer": (37, 11), "bias": (53,), "scale": ()}
HOSTILE = 2
OPTIONS = {
    "fedavg": {},
    "fedavgm": {"momentum": 0.9, "lr": 0.3},
    "diloco": {"momentum": 0.75, "lr": 0.5},
    "fedadam": {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3},
    "fedyogi": {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "tau": 1e-2},
    "fedadagrad": {"lr": 0.1, "tau": 1e-3},
    "fednova": {},
    "qfedavg": {"q": 0.5, "lr": 0.05},
    "scaffold": {"lr": 0.7, "nodes": 20},
    "feddyn": {"alpha": 0.05, "nodes": 20},
    "median": {},
    "trimmed-mean": {"hostile": HOSTILE},
    "krum": {"hostile": HOSTILE},
    "multi-krum": {"hostile": HOSTILE},
    "bulyan": {"hostile": HOSTILE},
    "geometric-median": {"iterations": 4, "nu": 1e-6},
    "norm-clip": {"rule": "fedavg"},
}
"""How each strategy of the table is set; the references have the same numbers."""
REMEMBERING = ("fedavgm", "diloco", "fedadam", "fedyogi", "fedadagrad", "scaffold", "feddyn")
ROBUST = ("trimmed-mean", "krum", "multi-krum", "bulyan")
ROUNDS = ("first", "second", "third")
"""Rounds in a row, for those that remember."""


@dataclass(frozen=True)
class Round:
    """One round: the model it starts from, and what each node returns and tells."""

    start: dict[str, np.ndarray]
    updates: list[dict[str, np.ndarray]]
    examples: list[float]
    steps: list[int]
    losses: list[float]
    controls: list[dict[str, np.ndarray]]


def rounds() -> dict[str, Round]:
    """All of them by name; `huge` and `gross` have as many hostile nodes as the robust rules are told of."""
    made = {
        name: _round(seed, nodes=16) for seed, name in enumerate((*ROUNDS, "equal", "ties", "huge", "gross", "near"))
    }
    made["one"] = _round(8, nodes=1)
    made["no examples"] = _round(9, nodes=12)
    made["no examples"].examples[:] = [0.0] * 12
    made["equal"].examples[:] = [1.0] * 16
    for node, update in enumerate(made["ties"].updates):
        for name in update:
            twin = made["ties"].updates[node // 3 * 3][name]
            update[name] = np.asarray(np.round(twin * 2) / 2, np.float32)
    for sent in (made["huge"].updates, made["huge"].controls):
        for update in sent[3:11:7]:
            for name in update:
                update[name] = np.asarray(update[name] * np.float32(1e30))
    for update in made["gross"].updates[:HOSTILE]:
        for name in update:
            update[name] = np.full_like(update[name], 50.0)
    for update in [made["near"].start, *made["near"].updates]:
        for name in update:
            update[name] = np.asarray(1000 + update[name] * 1e-2, np.float32)
    return made


def _round(seed: int, *, nodes: int) -> Round:
    generator = np.random.default_rng(seed)

    def tensors(scale: float = 1.0) -> dict[str, np.ndarray]:
        return {name: np.asarray(generator.normal(0, scale, shape), np.float32) for name, shape in SHAPES.items()}

    start = tensors()
    return Round(
        start=start,
        updates=[
            {name: np.asarray(start[name] + moved) for name, moved in tensors(0.1 + node / 20).items()}
            for node in range(nodes)
        ],
        examples=[float(count) for count in generator.integers(1, 500, nodes)],
        steps=[int(count) for count in generator.integers(1, 40, nodes)],
        losses=[float(loss) for loss in generator.uniform(0.05, 3, nodes)],
        controls=[tensors() for _ in range(nodes)],
    )
