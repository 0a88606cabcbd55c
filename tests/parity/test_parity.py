"""What runs is what the papers say: every strategy beside Flower's own and beside its formula, to 1e-6 in float32.

Flower lives in an environment of its own, `.venv/flower`, which `make test` installs.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedctl.federation import Named
from fedctl.strategies import STRATEGIES, Contribution, build
from tests.parity import cases, formulas
from tests.parity.formulas import RULES, flat, formula

Tensors = dict[str, torch.Tensor]

FLOWER = Path(sys.prefix) / "flower" / "bin" / "python"
ROUNDS = cases.rounds()
ALONE = ("ties", "huge", "gross", "near", "one", "no examples")


def ours(name: str, rounds: Sequence[str], dtype: torch.dtype = torch.float32) -> np.ndarray:
    """The model after these rounds, each of which starts from its own, in one row."""
    model, _ = played(name, rounds, dtype)
    assert {tensor.dtype for tensor in model.values()} == {dtype}
    return flat({key: tensor.double().numpy() for key, tensor in model.items()})


def played(name: str, rounds: Sequence[str], dtype: torch.dtype = torch.float32) -> tuple[Tensors, Tensors]:
    """That model as tensors, and the memory after these rounds."""
    strategy, memory = build(Named(name=name, options=cases.OPTIONS[name])), {}
    for one in (ROUNDS[each] for each in rounds):
        updates = [
            Contribution(
                name=f"n{node:02d}",
                weight=one.examples[node],
                weights=tensors(update, dtype),
                steps=one.steps[node],
                loss=one.losses[node],
                controls=tensors(one.controls[node], dtype),
            )
            for node, update in enumerate(one.updates)
        ]
        outcome = strategy.aggregate(tensors(one.start, dtype), updates, memory)
        model, memory = dict(outcome.model), dict(outcome.memory)
    return model, memory


def tensors(arrays: dict[str, np.ndarray], dtype: torch.dtype) -> Tensors:
    return {key: torch.from_numpy(values).to(dtype) for key, values in arrays.items()}


def narrowed(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).to(torch.bfloat16).float().numpy()


def rounds_of(name: str) -> list[tuple[str, ...]]:
    """What a strategy is compared on; one update is too few for some."""
    alone = [kind for kind in ALONE if not (name in cases.ROBUST and kind == "one")]
    return [cases.ROUNDS if name in cases.REMEMBERING else cases.ROUNDS[:1], *((kind,) for kind in alone)]


@pytest.fixture(scope="module")
def flower(tmp_path_factory) -> dict[str, np.ndarray]:
    """Flower's models by `strategy/round/tensor`."""
    assert FLOWER.exists(), f"there is no {FLOWER}; `make test` installs it"
    folder = tmp_path_factory.mktemp("flower")
    arrays = {}
    for name, played in ROUNDS.items():
        for which, model in [("start", played.start), *enumerate(played.updates)]:
            arrays |= {f"{name}/{which}/{key}": values for key, values in model.items()}
        arrays |= {f"{name}/examples": np.array(played.examples), f"{name}/losses": np.array(played.losses)}
    np.savez(folder / "rounds.npz", **arrays)
    script = Path(__file__).with_name("flower.py")
    argv = [str(FLOWER), str(script), str(folder / "rounds.npz"), str(folder / "models.npz")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "models.npz") as models:
        return dict(models)


def test_every_strategy_has_a_formula():
    assert set(RULES) == set(cases.OPTIONS) == set(STRATEGIES)


@pytest.mark.parametrize(("name", "rounds"), [(name, rounds) for name in STRATEGIES for rounds in rounds_of(name)])
def test_a_strategy_is_its_formula(name, rounds):
    expected = formula(name, [ROUNDS[each] for each in rounds])
    np.testing.assert_allclose(ours(name, rounds), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rounds", [cases.ROUNDS, *((kind,) for kind in ALONE)])
@pytest.mark.parametrize(("name", "kept", "key"), [("scaffold", "c", "{}"), ("feddyn", "h", "{}/h")])
def test_what_goes_into_the_next_training_is_its_formula(name, kept, key, rounds):
    """Scaffold's nodes train by its memory, and what feddyn keeps moves every model after."""
    _, memory = formulas.played(name, [ROUNDS[each] for each in rounds])
    _, found = played(name, rounds)
    expected = memory[kept]
    ours = flat({tensor: found[key.format(tensor)].double().numpy() for tensor in cases.SHAPES})
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("rounds", [cases.ROUNDS, *((kind,) for kind in ALONE)])
def test_scaffold_by_examples_is_its_formula(rounds, monkeypatch):
    monkeypatch.setitem(cases.OPTIONS, "scaffold", {**cases.OPTIONS["scaffold"], "by_examples": True})
    model, memory = formulas.played("scaffold", [ROUNDS[each] for each in rounds])
    found, kept = played("scaffold", rounds)
    for ours, expected in ((found, model), (kept, memory["c"])):
        row = flat({tensor: ours[tensor].double().numpy() for tensor in cases.SHAPES})
        np.testing.assert_allclose(row, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_is_its_formula_in_bfloat16_up_to_its_last_bit(name):
    played = ROUNDS["first"]
    start, *updates = ({key: narrowed(values) for key, values in m.items()} for m in [played.start, *played.updates])
    expected = formula(name, [replace(played, start=start, updates=updates)])
    np.testing.assert_allclose(ours(name, ["first"], torch.bfloat16), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in STRATEGIES
        if name not in ("diloco", "fednova", "scaffold", "feddyn", "geometric-median", "norm-clip")
    ],
)
def test_a_strategy_is_flowers(name, flower):
    compared = {key.split("/")[1] for key in flower if key.startswith(f"{name}/")}
    assert compared
    for played in compared:
        rounds = cases.ROUNDS if name in cases.REMEMBERING else (played,)
        expected = flat({key: flower[f"{name}/{played}/{key}"] for key in cases.SHAPES})
        np.testing.assert_allclose(ours(name, rounds), expected, rtol=1e-6, atol=1e-9, err_msg=played)
