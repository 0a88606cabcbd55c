"""What a local rule sends beside the weights: judged with the update, handed to a strategy that uses it, else left."""

import pytest
import torch

from fedctl.aggregation import aggregate_files, aggregate_round
from fedctl.errors import ModelError
from fedctl.federation import Named
from fedctl.soundness import check_update
from fedctl.strategies import build
from fedctl.weights import CONTROL, Weights, digest, save, split

SCAFFOLD = Named(name="scaffold", options={"nodes": 4})
MODEL = {"w": torch.full((40_000,), 1.0), "half": torch.ones(3).half(), "steps": torch.tensor(1)}


def beside(**controls):
    return {CONTROL + name: tensor for name, tensor in controls.items()}


@pytest.fixture
def files(tmp_path):
    """A model and two updates, of which only one has controls, and these not of all tensors."""
    save(tmp_path / "model.safetensors", MODEL)
    save(tmp_path / "alice.safetensors", {**MODEL, **beside(w=torch.full((40_000,), 2.0))})
    save(tmp_path / "bob.safetensors", {**MODEL, "w": torch.full((40_000,), 3.0)})
    return {name: tmp_path / f"{name}.safetensors" for name in ("model", "alice", "bob")}


def closed(files, tmp_path, strategy, memory=None):
    return aggregate_round(
        files["model"],
        {"alice": (files["alice"], 1), "bob": (files["bob"], 1)},
        memory=memory,
        strategy=build(strategy),
        model_out=tmp_path / "next.safetensors",
        memory_out=tmp_path / "memory.safetensors",
    )


def test_an_update_is_split_without_a_copy(files):
    whole = Weights.open(files["alice"])
    weights, controls = split(whole)
    assert (set(weights), set(controls)) == (set(MODEL), {"w"})
    assert controls["w"].data_ptr() == whole["control/w"].data_ptr()
    assert weights["w"].data_ptr() == whole["w"].data_ptr()
    whole = Weights.open(files["bob"])
    assert split(whole) == (whole, {})


def test_a_round_hands_controls_on_and_keeps_them_by_the_models_names(files, tmp_path):
    first = closed(files, tmp_path, SCAFFOLD)
    assert Weights.open(tmp_path / "next.safetensors")["w"].unique().tolist() == [2.0]
    assert first.memory == digest(tmp_path / "memory.safetensors")
    memory = Weights.open(tmp_path / "memory.safetensors")
    assert {name: tensor.unique().tolist() for name, tensor in memory.items()} == {"w": [0.5]}
    (tmp_path / "memory.safetensors").rename(tmp_path / "before.safetensors")
    closed(files, tmp_path, SCAFFOLD, memory=tmp_path / "before.safetensors")
    assert Weights.open(tmp_path / "memory.safetensors")["w"].unique().tolist() == [1.0]


def test_a_strategy_without_use_for_controls_gets_the_weights_alone(files, tmp_path):
    found = closed(files, tmp_path, Named(name="fedavg"))
    assert (found.model, found.memory) == (digest(tmp_path / "next.safetensors"), None)
    assert set(Weights.open(tmp_path / "next.safetensors")) == set(MODEL)


@pytest.mark.parametrize("strategy", [Named(name="fedavg"), SCAFFOLD])
@pytest.mark.parametrize("order", [("alice", "bob"), ("bob", "alice")])
def test_files_are_averaged_with_and_without_controls_beside_them(files, tmp_path, strategy, order):
    output = tmp_path / "out.safetensors"
    report = aggregate_files([files[name] for name in order], strategy=strategy, output=output)
    assert {name: tensor.flatten()[0].item() for name, tensor in Weights.open(output).items()} == {
        "w": 2.0,
        "half": 1.0,
        "steps": 1,
    }
    assert report.tensors == 3


def test_plain_files_are_not_enough_for_scaffold(files, tmp_path):
    with pytest.raises(ModelError, match=r"scaffold needs the controls .* and there are none"):
        aggregate_files([files["bob"]], strategy=Named(name="scaffold"), output=tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_controls_that_would_be_infinite_together_are_refused(tmp_path):
    save(tmp_path / "model.safetensors", MODEL)
    save(tmp_path / "loud.safetensors", {**MODEL, **beside(half=torch.full((3,), 6e4).half())})
    files = {"model": tmp_path / "model.safetensors"} | dict.fromkeys(("alice", "bob"), tmp_path / "loud.safetensors")
    save(tmp_path / "before.safetensors", {"half": torch.full((3,), 6e4).half()})
    with pytest.raises(ModelError, match="the strategy's memory: tensor `half` has NaN or infinite values"):
        closed(files, tmp_path, Named(name="scaffold"), memory=tmp_path / "before.safetensors")
    assert not (tmp_path / "memory.safetensors").exists()
    assert not (tmp_path / "next.safetensors").exists()


def test_sound_controls_pass():
    check_update(MODEL, MODEL, controls=True)
    check_update({**MODEL, **beside(w=MODEL["w"], half=MODEL["half"])}, MODEL, controls=True, farthest=1000.0)


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({"v": torch.ones(3)}, "unexpected tensor `control/v`, the model has none of that name"),
        ({"steps": torch.tensor(1)}, "unexpected tensor `control/steps`, `steps` is int64 []"),
        ({"w": torch.ones(3)}, "tensor `control/w` is float32 [3], the model has float32 [40000]"),
        ({"half": torch.ones(3)}, "tensor `control/half` is float32 [3], the model has float16 [3]"),
        ({"half": torch.tensor([0, 1, torch.nan]).half()}, "tensor `control/half` has NaN or infinite values"),
        ({"half": torch.tensor([0, 1, torch.inf]).half()}, "tensor `control/half` has NaN or infinite values"),
        ({"w": MODEL["w"], "control/w": MODEL["w"]}, "unexpected tensor `control/control/w`, the model has no"),
    ],
)
@pytest.mark.parametrize("farthest", [None, 1000.0])
def test_controls_that_do_not_fit_are_refused_by_name(controls, message, farthest):
    with pytest.raises(ModelError) as error:
        check_update({**MODEL, **beside(**controls)}, MODEL, what="its update", controls=True, farthest=farthest)
    assert str(error.value).startswith(f"its update: {message}")


@pytest.mark.parametrize("farthest", [None, 1000.0])
def test_where_no_one_asked_for_controls_there_are_none(farthest):
    with pytest.raises(ModelError, match="unexpected tensor `control/w`, the model has none of that name"):
        check_update({**MODEL, **beside(w=MODEL["w"])}, MODEL, farthest=farthest)


def test_a_weight_cannot_hide_as_a_control():
    """An update that lacks a tensor lacks it, whatever else it has."""
    update = {name: tensor for name, tensor in MODEL.items() if name != "w"} | beside(w=MODEL["w"])
    with pytest.raises(ModelError, match="unexpected tensor `control/w`"):
        check_update(update, MODEL, controls=True)


def test_controls_may_be_only_so_large():
    """The norm of all of them together, as a multiple of the model's plus 1, which is about 201."""
    model = {"w": torch.full((40_000,), 1.0), "v": torch.zeros(10_000)}
    update = {**model, **beside(w=torch.full((40_000,), 4.0), v=torch.full((10_000,), -6.0))}
    check_update(update, model, controls=True, farthest=5.0)
    with pytest.raises(ModelError) as error:
        check_update(update, model, what="its update", controls=True, farthest=4.9)
    assert str(error.value) == (
        "its update has controls of norm 1e+03, and the model one of 200: more than `limits: {norm: 4.9}` allows: "
        "it has diverged; tensor `control/w` is the largest"
    )


def test_controls_whose_squares_are_beyond_a_double_are_measured():
    model = {"w": torch.ones(3, dtype=torch.float64)}
    with pytest.raises(ModelError, match=r"controls of norm 1\.73e\+300, and the model one of 1\.73"):
        check_update({**model, **beside(w=model["w"] * 1e300)}, model, controls=True, farthest=1000.0)
