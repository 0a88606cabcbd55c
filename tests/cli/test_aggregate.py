"""`fedctl aggregate` over plain files, with the model that they were trained from."""

import pytest
import torch

from fedctl.weights import Weights, save


@pytest.fixture
def files(tmp_path):
    for name, value in {"before": 1.0, "alice": 2.0, "bob": 4.0}.items():
        save(tmp_path / f"{name}.safetensors", {"w": torch.full((2,), value)})


@pytest.mark.usefixtures("files")
def test_a_strategy_moves_the_model_that_is_given(fedctl, tmp_path):
    command = ["aggregate", "alice.safetensors", "bob.safetensors", "-o", "out.safetensors", "--strategy", "fedavgm"]
    said = fedctl(*command)
    assert said.code == 6
    assert "fedavgm needs the model that the updates started from" in said.err
    assert "--model FILE" in said.err
    said = fedctl(*command, "--option", "lr=2", "--model", "before.safetensors")
    assert said.code == 0
    assert Weights.open(tmp_path / "out.safetensors")["w"].tolist() == [5.0, 5.0]


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("model", "code", "message"),
    [("nosuch.safetensors", 2, "nosuch.safetensors: no such file"), ("odd.safetensors", 6, "unexpected tensor `v`")],
)
def test_a_model_that_cannot_be_it(fedctl, tmp_path, model, code, message):
    save(tmp_path / "odd.safetensors", {"v": torch.ones(2)})
    said = fedctl("aggregate", "alice.safetensors", "-o", "out.safetensors", "--model", model)
    assert said.code == code
    assert message in said.err
    assert not (tmp_path / "out.safetensors").exists()
