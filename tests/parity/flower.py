"""Flower's own strategies over the rounds of a file: `python flower.py ROUNDS.npz MODELS.npz`, where flwr is installed.

Arrays go in as float64, so that what comes out is Flower's arithmetic and not its rounding. Where Flower and the paper
differ in a number, it is set here: its FedAdam counts rounds from 2 and corrects tau, its Bulyan chooses all at once
unless it is given the paper's rule.
"""

import sys
from types import SimpleNamespace

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy
from flwr.serverapp.strategy.fedopt import FedOpt
from flwr.serverapp.strategy.multikrum import select_multikrum

BETA2, TAU = 0.99, 1e-3


def one_by_one(contents, hostile, count):
    left, chosen = list(contents), []
    while len(chosen) < count:
        best = select_multikrum(left, hostile, 1)[0]
        chosen.append(best)
        left = [content for content in left if content is not best]
    return chosen


STRATEGIES = {
    "fedavg": lambda _: strategy.FedAvg(),
    "fedavgm": lambda _: strategy.FedAvgM(server_learning_rate=0.3, server_momentum=0.9),
    "fedadam": lambda _: strategy.FedAdam(eta=0.1, beta_1=0.9, beta_2=BETA2, tau=TAU),
    "fedyogi": lambda _: strategy.FedYogi(eta=0.05, beta_1=0.8, beta_2=0.95, tau=1e-2),
    "fedadagrad": lambda _: strategy.FedAdagrad(eta=0.1, tau=TAU),
    "qfedavg": lambda _: strategy.QFedAvg(client_learning_rate=0.05, q=0.5, train_loss_key="loss"),
    "median": lambda _: strategy.FedMedian(),
    "trimmed-mean": lambda nodes: strategy.FedTrimmedAvg(beta=2 / nodes),
    "krum": lambda _: strategy.Krum(num_malicious_nodes=2),
    "multi-krum": lambda nodes: strategy.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=nodes - 2),
    "bulyan": lambda _: strategy.Bulyan(num_malicious_nodes=2, selection_rule=one_by_one),
}
CASES = [
    *((name, ["first", "second", "third"]) for name in ("fedavgm", "fedadam", "fedyogi", "fedadagrad")),
    *((name, [played]) for name in ("fedavg", "qfedavg", "median") for played in ("first", "ties", "near", "one")),
    *((name, [played]) for name in ("trimmed-mean", "krum") for played in ("first", "huge", "gross", "ties")),
    *((name, [played]) for name in ("multi-krum", "bulyan") for played in ("equal",)),
]


def record(arrays):
    return ArrayRecord({name: Array(np.asarray(values, np.float64)) for name, values in arrays.items()})


def reply(arrays, examples, loss):
    metrics = MetricRecord({"num-examples": examples, "loss": loss})
    return SimpleNamespace(has_error=lambda: False, content=RecordDict({"arrays": record(arrays), "metrics": metrics}))


def aggregated(name, rounds):
    """The model after rounds of (start, updates, examples, losses)."""
    rule = STRATEGIES[name](len(rounds[0][1]))
    for number, (start, updates, examples, losses) in enumerate(rounds):
        double = {key: np.asarray(values, np.float64) for key, values in start.items()}
        rule.current_arrays = double if isinstance(rule, FedOpt) else record(start)
        if name == "fedadam":
            rule.tau = TAU * np.sqrt(1 - BETA2 ** (number + 1))
        told = zip(updates, examples, losses, strict=True)
        arrays, _ = rule.aggregate_train(number, [reply(*each) for each in told])
    return {key: array.numpy() for key, array in arrays.items()}


def main(source, target):
    with np.load(source) as file:
        found = dict(file)

    def played(name):
        nodes = len(found[f"{name}/examples"])
        tensors = [key.rpartition("/")[2] for key in found if key.startswith(f"{name}/start/")]
        models = [
            {tensor: found[f"{name}/{which}/{tensor}"] for tensor in tensors} for which in ("start", *range(nodes))
        ]
        return models[0], models[1:], found[f"{name}/examples"].tolist(), found[f"{name}/losses"].tolist()

    models = {}
    for name, rounds in CASES:
        for tensor, values in aggregated(name, [played(each) for each in rounds]).items():
            models[f"{name}/{rounds[-1]}/{tensor}"] = values
    np.savez(target, **models)


if __name__ == "__main__":
    main(*sys.argv[1:])
