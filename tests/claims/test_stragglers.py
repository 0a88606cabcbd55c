"""FedProx where nine nodes of ten are too slow: what they have done is used, and drawn back; FedAvg drops it."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fedctl.weights import Weights
from tests.claims import figures, synthetic
from tests.claims.program import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SEEDS = range(5)
LAST = slice(150, 200)
STRAGGLERS = 0.9


def curve(method: str, data: str, seed: int) -> list[float]:
    """The accuracy after each round."""
    federation = synthetic.devices(seed, is_iid=data == "iid")
    mu, drop = (1.0, False) if method == "fedprox" else (0.0, True)
    return list(synthetic.accuracies(federation, mu=mu, stragglers=STRAGGLERS, drop=drop))


@pytest.fixture(scope="module")
def pool():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as found:
        yield found


@pytest.mark.parametrize(
    ("mu", "sections"), [(1.0, {"local": {"name": "fedprox", "mu": 1.0}}), (0.0, {})], ids=["fedprox", "fedavg"]
)
def test_what_is_simulated_is_what_the_program_does(tmp_path, mu, sections):
    """Three epochs on each of two devices, and the model that comes of them, twice over."""
    federation = synthetic.devices(0)[:2]
    sites = {f"device-{number:02d}": each for number, each in enumerate(federation)}
    for name, each in sites.items():
        np.savez(tmp_path / f"{name}.npz", x=each.x[:, :-1], y=each.y)
    model_args = {"features": synthetic.FEATURES, "classes": synthetic.CLASSES, "lr": synthetic.LR}
    configuration = {
        "name": "synthetic",
        "rounds": 2,
        "task": {
            "model": "softmax.py:Regression",
            "model_args": model_args,
            "data": "softmax.py:Rows",
            "data_args": {"batch": synthetic.BATCH},
            "trainer": {"max_epochs": 3},
        },
        "defaults": {"accelerator": "cpu", "threads": 1},
        "nodes": [{"name": name, "host": "local", "data": {"file": str(tmp_path / f"{name}.npz")}} for name in sites],
        **sections,
    }
    run = Run.launch(tmp_path, configuration, ["softmax.py"])
    model = matrix(run.folder / "runs" / "claim" / "rounds" / "0000")
    for folder in run.rounds:
        updates = {name: (len(each.y), synthetic.trained(model, each, 3, mu=mu)) for name, each in sites.items()}
        for name, (_, weights) in updates.items():
            assert matrix(folder / "updates", f"{name}.safetensors") == pytest.approx(weights, rel=1e-9, abs=1e-12)
        model = synthetic.aggregated(model, updates)
        assert matrix(folder) == pytest.approx(model, rel=1e-9, abs=1e-12)


def matrix(folder: Path, file: str = "model.safetensors") -> synthetic.Array:
    weights = Weights.open(folder / file)
    return np.vstack([weights["net.weight"].numpy().T, weights["net.bias"].numpy()])


def test_fedprox_uses_what_stragglers_did(pool):
    running = {method: pool.map(partial(curve, method, "unlike"), SEEDS) for method in ("fedprox", "fedavg")}
    fedprox, fedavg = (np.array(list(running[method])) for method in ("fedprox", "fedavg"))
    figures.save("stragglers", {"fedprox, mu 1": fedprox.mean(axis=0), "fedavg, dropping them": fedavg.mean(axis=0)})
    gains = 100 * (fedprox - fedavg)[:, LAST].mean(axis=1)
    each = ", ".join(f"{gain:.1f}" for gain in gains)
    figures.record(
        "fedprox bears 90 % stragglers that fedavg drops",
        bound=">= 12 points",
        seen=f"{gains.mean():.1f} points ({each})",
    )
    assert gains.mean() >= 12


def test_mu_has_to_be_tuned(pool):
    running = [pool.submit(curve, method, "iid", 0) for method in ("fedavg", "fedprox")]
    fedavg, fedprox = (100 * np.mean(each.result()[LAST]) for each in running)
    figures.record("fedprox with mu 1 over IID data", bound="<= -15 points", seen=f"{fedprox - fedavg:.1f} points")
    assert fedavg - fedprox >= 15
