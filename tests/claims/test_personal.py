"""Nodes with very unlike images (Dirichlet 0.1): what five epochs of fine-tuning on each of them add to a model."""

import json
from statistics import mean

import pytest

from tests.claims import figures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SEEDS = (0, 1)


def test_finetuning_serves_every_node(mnist):
    """In points of accuracy on what each node holds back: over all that is held back, and where the model was worst."""
    gains, gains_of_worst, worst = [], [], []
    for seed in SEEDS:
        run = mnist.launch(
            rounds=25,
            lr=0.1,
            seed=seed,
            model="Convolutional",
            data="Divided",
            data_args={"alpha": 0.1, "smallest": 20},
            finetune={"epochs": 5, "model_args": {"lr": 0.03}},
        )
        found = json.loads(run.fedctl("status", "claim", "--json"))["personal"]
        assert found["finetuned"]
        everyones, own = ([each[kind]["val_acc"] for each in found["nodes"]] for kind in ("global", "personal"))
        assert len(own) == 10
        if seed == 0:
            figures.save("personal", {"global model": everyones, "after 5 epochs of its own": own})
        means = [found["metrics"][kind]["val_acc"] for kind in ("global", "personal")]
        gains.append(100 * (means[1] - means[0]))
        gains_of_worst.append(100 * (own[everyones.index(min(everyones))] - min(everyones)))
        worst.append(f"{100 * min(everyones):.1f} -> {100 * min(own):.1f} %")
    figures.record("5 epochs of fine-tuning, all nodes", bound=">= 4 points", seen=points(gains))
    figures.record(
        "5 epochs of fine-tuning, the node served worst",
        bound=">= 15 points, mean",
        seen=f"{points(gains_of_worst)} (worst of all before and after: {', '.join(worst)})",
    )
    assert min(gains) >= 4
    assert mean(gains_of_worst) >= 15


def points(gains: list[float]) -> str:
    return ", ".join(f"{gain:.1f}" for gain in gains) + " points"
