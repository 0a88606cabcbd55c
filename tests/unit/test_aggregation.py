import math

import numpy as np
import pytest
import safetensors.torch
import torch

from fedctl.aggregation import Closed, aggregate_files, aggregate_round
from fedctl.errors import ModelError, UsageError
from fedctl.federation import Named
from fedctl.strategies import build
from fedctl.weights import Weights, digest, read_file, save

FEDAVG = Named(name="fedavg")


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(50, 30, generator=generator) * 10**seed,
        "half": torch.randn(64, generator=generator).half(),
        "bn.num_batches_tracked": torch.tensor(10 * seed),
    }


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in ("alice", "bob", "carol")]
    for seed, path in enumerate(paths):
        save(path, tensors(seed))
    return paths


def test_fedavg_agrees_with_numpy_in_double_precision(files, tmp_path):
    examples = (120, 3, 4_000)
    aggregate_files(files, weights=examples, strategy=FEDAVG, output=tmp_path / "out.safetensors")
    result = safetensors.torch.load_file(tmp_path / "out.safetensors")
    for name in ("weight", "half"):
        stacked = np.stack([tensors(seed)[name].numpy().astype(np.float64) for seed in range(3)])
        expected = np.average(stacked, axis=0, weights=examples)
        error = np.abs(result[name].numpy().astype(np.float64) - expected).max() / np.abs(expected).max()
        assert error < (1e-6 if name == "weight" else 1e-3)
    assert result["weight"].dtype == torch.float32
    assert result["bn.num_batches_tracked"] == 20


def test_the_report_says_what_was_done(files, tmp_path):
    output = tmp_path / "out.safetensors"
    report = aggregate_files(files[:2], weights=[1, 3], strategy=FEDAVG, output=output)
    assert (report.output, report.strategy, report.blob) == (output, "fedavg", digest(output))
    assert (report.tensors, report.parameters) == (3, 50 * 30 + 64 + 1)
    assert [(c.name, c.share) for c in report.contributors] == [(str(files[0]), 0.25), (str(files[1]), 0.75)]

    def flat(values):
        return torch.cat([values[name].double().reshape(-1) for name in ("weight", "half")])

    result = flat(read_file(output))
    for contributor, seed in zip(report.contributors, range(2), strict=True):
        assert contributor.distance == pytest.approx(float((flat(tensors(seed)) - result).norm() / result.norm()))


def test_distance_from_zero_has_no_meaning(tmp_path):
    save(tmp_path / "a.safetensors", {"w": torch.zeros(2)})
    report = aggregate_files([tmp_path / "a.safetensors"], strategy=FEDAVG, output=tmp_path / "out.safetensors")
    assert report.contributors[0].distance is None


def test_checkpoints_are_averaged_into_a_checkpoint(tmp_path):
    for name, value in (("a", 1.0), ("b", 3.0)):
        content = {"state_dict": {"w": torch.full((2,), value)}, "hyper_parameters": {"lr": value}, "epoch": 9}
        torch.save(content, tmp_path / f"{name}.ckpt")
    report = aggregate_files(
        [tmp_path / "a.ckpt", tmp_path / "b.ckpt"], strategy=Named(name="median"), output=tmp_path / "out.ckpt"
    )
    content = torch.load(tmp_path / "out.ckpt", weights_only=True)
    assert content["state_dict"]["w"].tolist() == [2.0, 2.0]
    assert content["hyper_parameters"] == {"lr": 1.0}
    assert report.blob == digest(tmp_path / "out.ckpt")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], "3 files need as many weights, not 2"),
        ([1, 2, -1], "a weight should be a number from 0, not -1"),
        ([1, 2, math.nan], "a weight should be a number from 0, not nan"),
        ([1, 2, math.inf], "a weight should be a number from 0, not inf"),
        ([0, 0, 0], "the weights are all 0"),
    ],
)
def test_weights_that_are_none_are_refused(files, tmp_path, weights, message):
    with pytest.raises(UsageError) as error:
        aggregate_files(files, weights=weights, strategy=FEDAVG, output=tmp_path / "out.safetensors")
    assert str(error.value) == message


@pytest.mark.parametrize("weights", [[1e308, 1e308, 1e308], [1e308, 1.5e308, 1e308]])
def test_weights_whose_sum_is_beyond_a_double_are_shares_all_the_same(files, tmp_path, weights):
    report = aggregate_files(files, weights=weights, strategy=FEDAVG, output=tmp_path / "out.safetensors")
    expected = [weight / 1e308 / sum(each / 1e308 for each in weights) for weight in weights]
    assert [each.share for each in report.contributors] == pytest.approx(expected)


@pytest.mark.parametrize("far", [1e200, -1e300])
@pytest.mark.parametrize("strategy", ["median", "geometric-median", "norm-clip", "krum", "fedavg"])
def test_a_double_whose_square_is_beyond_a_double_is_aggregated_and_told_of(tmp_path, strategy, far):
    files = [tmp_path / f"{number}.safetensors" for number in range(5)]
    for number, path in enumerate(files):
        save(path, {"w": torch.tensor([far if number == 2 else 1.0 + number], dtype=torch.float64)})
    save(tmp_path / "model.safetensors", {"w": torch.zeros(1, dtype=torch.float64)})
    output = tmp_path / "out.safetensors"
    report = aggregate_files(files, strategy=Named(name=strategy), output=output, model=tmp_path / "model.safetensors")
    end = Weights.open(output)["w"].item()
    expected = [abs(value - end) / abs(end) for value in (1.0, 2.0, far, 4.0, 5.0)]
    assert [each.distance for each in report.contributors] == pytest.approx(expected)
    assert (abs(end) < 10) == (strategy != "fedavg")


def test_a_distance_beyond_a_double_is_none(tmp_path):
    """JSON has no number for it."""
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for path, value in zip(files, (1e-200, 2e-200, 1e300), strict=True):
        save(path, {"w": torch.tensor([value], dtype=torch.float64)})
    report = aggregate_files(files, strategy=Named(name="median"), output=tmp_path / "out.safetensors")
    assert [each.distance for each in report.contributors] == [0.5, 0.0, None]


def test_weights_are_refused_where_they_would_not_count(files, tmp_path):
    with pytest.raises(UsageError, match="median counts every file alike"):
        aggregate_files(files, weights=[1, 2, 3], strategy=Named(name="median"), output=tmp_path / "out.safetensors")


def test_an_output_that_exists_is_replaced_only_by_force(files, tmp_path):
    output = tmp_path / "out.safetensors"
    aggregate_files(files, strategy=FEDAVG, output=output)
    before = digest(output)
    with pytest.raises(UsageError, match=r"out\.safetensors exists already"):
        aggregate_files(files[:1], strategy=FEDAVG, output=output)
    assert digest(output) == before
    aggregate_files(files[:1], strategy=FEDAVG, output=output, force=True)
    assert digest(output) == digest(files[0])


def test_an_input_may_be_the_output(files):
    expected = tensors(0)["weight"]
    aggregate_files([files[0], files[0]], strategy=FEDAVG, output=files[0], force=True)
    assert torch.equal(Weights.open(files[0])["weight"], expected)


@pytest.mark.parametrize(
    ("output", "message"),
    [("out.bin", r"out\.bin: should end in \.safetensors or \.ckpt"), ("none/out.ckpt", "none: no such folder")],
)
def test_an_output_that_cannot_be_is_refused(files, tmp_path, output, message):
    with pytest.raises(UsageError, match=message):
        aggregate_files(files, strategy=FEDAVG, output=tmp_path / output)


def test_files_that_are_not_there_are_refused(files, tmp_path):
    with pytest.raises(UsageError, match=r"dora\.safetensors: no such file"):
        aggregate_files([*files, tmp_path / "dora.safetensors"], strategy=FEDAVG, output=tmp_path / "out.safetensors")
    with pytest.raises(UsageError, match="no files to aggregate"):
        aggregate_files([], strategy=FEDAVG, output=tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"w": torch.zeros(3)}, "{odd}: tensor `w` is float32 [3], {first} has float32 [2]"),
        ({"w": torch.zeros(2).half()}, "{odd}: tensor `w` is float16 [2], {first} has float32 [2]"),
        ({"v": torch.zeros(2)}, "{odd}: unexpected tensor `v`, {first} has none of that name"),
        ({}, "{odd}: tensor `w` is missing, {first} has it"),
        ({"w": torch.tensor([0, torch.nan])}, "{odd}: tensor `w` has NaN or infinite values"),
    ],
)
def test_files_that_do_not_fit_are_named_with_the_tensor(tmp_path, odd, message):
    first, other = tmp_path / "first.safetensors", tmp_path / "odd.safetensors"
    save(first, {"w": torch.zeros(2)})
    save(other, odd)
    with pytest.raises(ModelError) as error:
        aggregate_files([first, other], strategy=FEDAVG, output=tmp_path / "out.safetensors")
    assert str(error.value) == message.format(odd=other, first=first)
    assert not (tmp_path / "out.safetensors").exists()


def test_the_model_and_the_memory_are_for_strategies_that_move_it(files, tmp_path):
    strategy, output = Named(name="fedavgm", options={"momentum": 0.5}), tmp_path / "out.safetensors"
    with pytest.raises(ModelError, match="none was given"):
        aggregate_files(files, strategy=strategy, output=output)
    save(tmp_path / "memory.safetensors", {"weight/momentum_buffer": torch.full((50, 30), 4.0)})
    aggregate_files(files[:1], strategy=strategy, output=output, model=files[0], memory=tmp_path / "memory.safetensors")
    assert torch.allclose(Weights.open(output)["weight"], tensors(0)["weight"] - 2, atol=1e-6)


def test_a_round_writes_model_and_memory_and_the_next_takes_them_up(files, tmp_path):
    strategy = build(Named(name="fedavgm", options={"momentum": 0.5}))
    updates = {"bob": (files[1], 30), "carol": (files[2], 10)}
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    closed = aggregate_round(
        files[0],
        updates,
        memory=None,
        strategy=strategy,
        model_out=first / "model.safetensors",
        memory_out=first / "memory.safetensors",
    )
    assert (closed.model, closed.memory) == tuple(digest(first / f"{name}.safetensors") for name in ("model", "memory"))
    aggregate_round(
        first / "model.safetensors",
        dict(reversed(updates.items())),
        memory=first / "memory.safetensors",
        strategy=strategy,
        model_out=second / "model.safetensors",
        memory_out=second / "memory.safetensors",
    )
    mean = (tensors(1)["weight"].double() * 30 + tensors(2)["weight"].double() * 10) / 40
    v = tensors(0)["weight"].double() - mean
    after_one = tensors(0)["weight"].double() - v
    v = 0.5 * v + (after_one - mean)
    assert torch.allclose(Weights.open(second / "model.safetensors")["weight"].double(), after_one - v, atol=1e-4)


def test_a_strategy_without_memory_writes_none(files, tmp_path):
    closed = aggregate_round(
        files[0],
        {"bob": (files[1], 0)},
        memory=None,
        strategy=build(FEDAVG),
        model_out=tmp_path / "model.safetensors",
        memory_out=tmp_path / "memory.safetensors",
    )
    assert closed == Closed(model=digest(files[1]), memory=None)
    assert digest(tmp_path / "model.safetensors") == digest(files[1])
    assert not (tmp_path / "memory.safetensors").exists()


def test_a_round_refuses_an_update_of_another_shape(files, tmp_path):
    save(tmp_path / "odd.safetensors", {**tensors(0), "weight": torch.zeros(3)})
    with pytest.raises(ModelError, match=r"update of bob: tensor `weight` is float32 \[3\], the model has float32"):
        aggregate_round(
            files[0],
            {"bob": (tmp_path / "odd.safetensors", 3)},
            memory=None,
            strategy=build(FEDAVG),
            model_out=tmp_path / "model.safetensors",
            memory_out=None,
        )


def test_a_model_that_diverged_is_refused_and_not_written(tmp_path):
    save(tmp_path / "model.safetensors", {"w": torch.full((2,), 3e38)})
    save(tmp_path / "update.safetensors", {"w": torch.full((2,), -3e38)})
    with pytest.raises(ModelError, match="the aggregated model: tensor `w` has NaN or infinite values"):
        aggregate_round(
            tmp_path / "model.safetensors",
            {"bob": (tmp_path / "update.safetensors", 3)},
            memory=None,
            strategy=build(Named(name="fedavgm", options={"lr": 3.0})),
            model_out=tmp_path / "next.safetensors",
            memory_out=None,
        )
    assert not (tmp_path / "next.safetensors").exists()


def test_steps_and_losses_reach_the_strategies_that_need_them(files, tmp_path):
    """With q = 0, and with the same number of steps, both are the plain mean."""
    spec = {path.stem: (path, 1) for path in files}
    aggregate_files(files, strategy=FEDAVG, output=tmp_path / "mean.safetensors")
    mean = Weights.open(tmp_path / "mean.safetensors")["weight"]
    for name, options in (("fednova", {}), ("qfedavg", {"q": 0})):
        known = {"steps": {path.stem: 3 for path in files}, "losses": {path.stem: 0.5 for path in files}}
        out = {"model_out": tmp_path / f"{name}.safetensors", "memory_out": None}
        strategy = build(Named(name=name, options=options))
        aggregate_round(files[0], spec, memory=None, strategy=strategy, **out, **known)
        assert torch.allclose(Weights.open(out["model_out"])["weight"], mean, atol=1e-6)
        with pytest.raises(ModelError, match="has none of alice"):
            aggregate_round(files[0], spec, memory=None, strategy=strategy, **out)
        of_files = {"steps": [3, 3, 3], "losses": [0.5, 0.5, 0.5], "model": files[0]}
        output = tmp_path / f"{name}-of-files.safetensors"
        aggregate_files(files, strategy=Named(name=name, options=options), output=output, **of_files)
        assert digest(output) == digest(out["model_out"])


@pytest.mark.parametrize("name", ["fednova", "qfedavg"])
def test_plain_files_are_told_that_a_run_knows_more_and_not_of_a_model(files, tmp_path, name):
    with pytest.raises(ModelError, match=f"{name} needs the .* and has none of .*alice") as error:
        aggregate_files(files, strategy=Named(name=name), output=tmp_path / "out.safetensors")
    assert f"`fedctl aggregate RUN --strategy {name}`" in error.value.hint
    assert not (tmp_path / "out.safetensors").exists()


def test_a_strategy_that_knows_no_weights_tells_of_no_shares(files, tmp_path):
    report = aggregate_files(files, strategy=Named(name="median"), output=tmp_path / "out.safetensors")
    assert {one.share for one in report.contributors} == {None}


def test_a_model_of_other_types_than_the_files_is_refused_over_files_as_in_a_run(files, tmp_path, monkeypatch):
    """As one's own strategy would give that takes the mean of counters."""
    (tmp_path / "floating.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from fedctl.strategies import Outcome\n\n"
        "@dataclass(frozen=True)\nclass Floating:\n    weighted: ClassVar[bool] = False\n\n"
        "    def aggregate(self, model, updates, memory):\n"
        "        return Outcome(model={n: t.float() for n, t in updates[0].weights.items()})\n"
    )
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "out.safetensors"
    with pytest.raises(ModelError, match=r"the aggregated model: tensor `bn\.num_batches_tracked` is float32"):
        aggregate_files(files, strategy=Named(name="floating.py:Floating"), output=output)
    assert not output.exists()
