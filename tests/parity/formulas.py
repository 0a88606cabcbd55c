"""Every strategy once more, from its paper, in a few lines of float64 NumPy over whole models as rows of a matrix."""

from collections.abc import Sequence

import numpy as np

from tests.parity.cases import HOSTILE, OPTIONS, Round

Memory = dict[str, np.ndarray]


def flat(tensors: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(tensors[name], np.float64).ravel() for name in sorted(tensors)])


def formula(name: str, rounds: Sequence[Round]) -> np.ndarray:
    """The model after the last of these rounds, each of which starts from its own."""
    return played(name, rounds)[0]


def played(name: str, rounds: Sequence[Round]) -> tuple[np.ndarray, Memory]:
    """That model, and what is remembered then."""
    memory: Memory = {}
    for number, one in enumerate(rounds, start=1):
        start, updates = flat(one.start), np.stack([flat(update) for update in one.updates])
        weights = np.array(one.examples) if any(one.examples) else np.ones(len(updates))
        model = RULES[name](start, updates, weights / weights.sum(), one, memory, number)
    return model, memory


def fedavg(start, updates, weights, *_):
    return weights @ updates


def fedavgm(start, updates, weights, played, memory, number):
    options = OPTIONS["fedavgm"]
    memory["v"] = options["momentum"] * memory.get("v", 0.0) + (start - weights @ updates)
    return start - options["lr"] * memory["v"]


def diloco(start, updates, weights, played, memory, number):
    options, gradient = OPTIONS["diloco"], start - updates.mean(0)
    memory["v"] = options["momentum"] * memory.get("v", 0.0) + gradient
    return start - options["lr"] * (gradient + options["momentum"] * memory["v"])


def fedadam(start, updates, weights, played, memory, number):
    options, change = OPTIONS["fedadam"], weights @ updates - start
    memory["m"] = options["beta1"] * memory.get("m", 0.0) + (1 - options["beta1"]) * change
    memory["v"] = options["beta2"] * memory.get("v", 0.0) + (1 - options["beta2"]) * change**2
    m, v = memory["m"] / (1 - options["beta1"] ** number), memory["v"] / (1 - options["beta2"] ** number)
    return start + options["lr"] * m / (np.sqrt(v) + options["tau"])


def fedyogi(start, updates, weights, played, memory, number):
    options, change = OPTIONS["fedyogi"], weights @ updates - start
    memory["m"] = options["beta1"] * memory.get("m", 0.0) + (1 - options["beta1"]) * change
    v = memory.get("v", np.zeros_like(start))
    memory["v"] = v - (1 - options["beta2"]) * change**2 * np.sign(v - change**2)
    return start + options["lr"] * memory["m"] / (np.sqrt(memory["v"]) + options["tau"])


def fedadagrad(start, updates, weights, played, memory, number):
    options, change = OPTIONS["fedadagrad"], weights @ updates - start
    memory["v"] = memory.get("v", 0.0) + change**2
    return start + options["lr"] * change / (np.sqrt(memory["v"]) + options["tau"])


def fednova(start, updates, weights, played, *_):
    steps = np.array(played.steps)
    return start + (weights @ steps) * ((weights / steps) @ (updates - start))


def qfedavg(start, updates, weights, played, *_):
    q, lipschitz = OPTIONS["qfedavg"]["q"], 1 / OPTIONS["qfedavg"]["lr"]
    losses, moved = np.array(played.losses), lipschitz * (start - updates)
    down = (q * losses ** (q - 1) * (moved**2).sum(1) + lipschitz * losses**q).sum()
    return start - (losses**q @ moved) / down


def scaffold(start, updates, weights, played, memory, *_):
    options, moved = OPTIONS["scaffold"], np.stack([flat(control) for control in played.controls])
    shares = weights if options.get("by_examples") else np.full(len(updates), 1 / len(updates))
    memory["c"] = memory.get("c", 0.0) + len(updates) / options["nodes"] * (shares @ moved)
    return start + options["lr"] * (shares @ (updates - start))


def feddyn(start, updates, weights, played, memory, *_):
    options = OPTIONS["feddyn"]
    memory["h"] = memory.get("h", 0.0) - options["alpha"] * (updates - start).sum(0) / options["nodes"]
    return updates.mean(0) - memory["h"] / options["alpha"]


def median(start, updates, *_):
    return np.median(updates, axis=0)


def trimmed_mean(start, updates, *_):
    return np.sort(updates, axis=0)[HOSTILE : len(updates) - HOSTILE].mean(axis=0)


def krum_order(updates, left):
    """Those that are left, best first, and of equally good ones the first."""
    scores = []
    for one in left:
        others = sorted(((updates[one] - updates[other]) ** 2).sum() for other in left if other != one)
        scores.append(sum(others[: max(1, len(left) - HOSTILE - 2)]))
    return [left[rank] for rank in np.argsort(scores, kind="stable")]


def krum(start, updates, *_):
    return updates[krum_order(updates, list(range(len(updates))))[0]]


def multi_krum(start, updates, *_):
    return updates[krum_order(updates, list(range(len(updates))))[: len(updates) - HOSTILE]].mean(axis=0)


def bulyan(start, updates, *_):
    left, chosen = list(range(len(updates))), []
    while len(chosen) < len(updates) - 2 * HOSTILE:
        chosen.append(krum_order(updates, left)[0])
        left.remove(chosen[-1])
    values = np.sort(updates[chosen], axis=0)
    nearest = np.argsort(np.abs(values - np.median(values, axis=0)), axis=0, kind="stable")
    return np.take_along_axis(values, nearest[: len(chosen) - 2 * HOSTILE], axis=0).mean(axis=0)


def geometric_median(start, updates, weights, *_):
    center = np.median(updates, axis=0)
    for _ in range(OPTIONS["geometric-median"]["iterations"]):
        pulls = weights / np.maximum(OPTIONS["geometric-median"]["nu"], np.linalg.norm(updates - center, axis=1))
        center = (pulls / pulls.sum()) @ updates
    return center


def norm_clip(start, updates, weights, *_):
    norms = np.linalg.norm(updates - start, axis=1)
    clipped = start + np.minimum(1, np.median(norms) / norms)[:, None] * (updates - start)
    return weights @ clipped


RULES = {
    "fedavg": fedavg,
    "fedavgm": fedavgm,
    "diloco": diloco,
    "fedadam": fedadam,
    "fedyogi": fedyogi,
    "fedadagrad": fedadagrad,
    "fednova": fednova,
    "qfedavg": qfedavg,
    "scaffold": scaffold,
    "feddyn": feddyn,
    "median": median,
    "trimmed-mean": trimmed_mean,
    "krum": krum,
    "multi-krum": multi_krum,
    "bulyan": bulyan,
    "geometric-median": geometric_median,
    "norm-clip": norm_clip,
}
