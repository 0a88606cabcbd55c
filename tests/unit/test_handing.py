"""What a training hands in, where its node has promised that no update is longer than a norm."""

import pytest
import torch

from fedctl.node.trainers.handing import handed_in
from fedctl.privacy import Privacy, SecureAggregation
from fedctl.records import Blob, Task, TaskKey
from fedctl.weights import Weights, save

START = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2), "steps": torch.tensor(3)}
TRAINED = {"weight": torch.full((2, 2), 3.0), "bias": torch.tensor([0.0, 8.0]), "steps": torch.tensor(5)}


@pytest.fixture
def task(tmp_path):
    save(tmp_path / "base", START)

    def made(privacy):
        return Task(
            key=TaskKey(round=1, node="a"),
            seed=1,
            model="m.py:M",
            model_args={},
            data="d.py:D",
            data_args={},
            trainer={},
            models={"base": Blob(digest="0" * 64, size=1)},
            privacy=privacy.to_json(),
        )

    return made


def written(task, tmp_path):
    handing = handed_in(task, {"base": tmp_path / "base"}, TRAINED, {}, None)
    handing.save(tmp_path / "update")
    return {name: tensor.clone() for name, tensor in Weights.open(tmp_path / "update").items()}


@pytest.mark.parametrize(("clip", "share"), [(5.0, 0.5), (100.0, 1.0)])
def test_an_update_leaves_no_longer_than_its_clip(task, tmp_path, clip, share):
    found = written(task(Privacy(clip=clip)), tmp_path)
    torch.testing.assert_close(found["weight"], share * TRAINED["weight"])
    torch.testing.assert_close(found["bias"], share * TRAINED["bias"])
    assert found["steps"] == 5, "integers have no length"


def test_one_that_is_masked_is_cut_down_as_it_is_masked(task, tmp_path):
    found = written(task(Privacy(clip=5.0, secure_aggregation=SecureAggregation())), tmp_path)
    torch.testing.assert_close(found["weight"], TRAINED["weight"])
