"""What codecs lose of a node's updates: it stays on the node, and goes with the next update that counts."""

import pytest
import torch

from fedctl.arrival import Arrival
from fedctl.codecs.pipeline import Pipeline, seed_of_model
from fedctl.durable import digest
from fedctl.node.agent import Blobs
from fedctl.node.trainers.parts import is_model_here
from fedctl.records import DIFFERENCE, Task, TaskKey
from fedctl.share import EVERYTHING
from fedctl.weights import Weights, save
from tests.contract.test_keeping import COMMON, code, do, first  # noqa: F401  (fixtures)

INT4 = [{"name": "delta"}, {"name": "int4"}, {"name": "zstd"}]
TOPK = [{"name": "delta"}, {"name": "topk", "keep": 0.1, "whole": 0}, {"name": "int8"}]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def arrived(tmp_path, key: str, model, up, *, share=EVERYTHING) -> dict[str, torch.Tensor]:
    """The update as the coordinator has it."""
    found = TaskKey.parse(key)
    arrival = Arrival(
        model=model,
        share=share,
        round=found.round,
        pipeline=Pipeline.of(up),
        seed=COMMON["seed"],
        controls=False,
        farthest=1000.0,
    )
    wire, update = tmp_path / "wire.safetensors", tmp_path / "update.safetensors"
    wire.write_bytes((tmp_path / found.folder / "update.safetensors").read_bytes())
    assert arrival.is_coded
    assert arrival.decode(wire, update) == digest(update)
    assert not wire.exists()
    arrival.check(update)
    return dict(Weights.open(update))


def residual(tmp_path, key: str) -> dict[str, torch.Tensor]:
    state = Weights.open(tmp_path / TaskKey.parse(key).folder / "state.safetensors")
    return {name.removeprefix("residual/"): state[name] for name in state if name.startswith("residual/")}


@pytest.mark.parametrize("up", [INT4, TOPK], ids=["int4", "topk"])
def test_what_is_lost_stays_and_goes_with_the_next_update(do, first, tmp_path, up):  # noqa: F811
    models = first()
    do("r0001/plain/a1", models)  # the same training without codecs says what should have come
    true = dict(Weights.open(tmp_path / "r0001-plain-a1/update.safetensors"))
    result = do("r0001/alice/a1", models, codec={"up": up})
    assert not result.fresh
    came, lost = arrived(tmp_path, "r0001/alice/a1", models["base"], up), residual(tmp_path, "r0001/alice/a1")
    assert "body.0.weight" in lost
    assert lost["body.0.weight"].abs().max() > 0
    for name, tensor in lost.items():
        assert torch.allclose(came[name] + tensor, true[name], atol=1e-6), name
    assert torch.equal(came["body.1.running_var"], true["body.1.running_var"])

    do("r0002/alice/a1", models, codec={"up": up}, kept="r0001/alice/a1")
    came, later = arrived(tmp_path, "r0002/alice/a1", models["base"], up), residual(tmp_path, "r0002/alice/a1")
    for name, tensor in later.items():
        assert torch.allclose(came[name] + tensor, true[name] + lost[name], atol=1e-6), name


def test_an_update_that_did_not_count_takes_nothing_along(do, first, tmp_path):  # noqa: F811
    models = first()
    do("r0001/alice/a1", models, codec={"up": TOPK})
    do("r0002/alice/a1", models, codec={"up": TOPK}, kept="r0001/alice/a1")
    second = {name: tensor.clone() for name, tensor in residual(tmp_path, "r0002/alice/a1").items()}
    do("r0003/alice/a1", models, codec={"up": TOPK}, kept="r0001/alice/a1")  # the plan names the one that counted
    third = residual(tmp_path, "r0003/alice/a1")
    assert all(torch.equal(second[name], third[name]) for name in second)


def test_a_residual_that_is_gone_is_told_of(do, first):  # noqa: F811
    models = first()
    result = do("r0002/alice/a1", models, codec={"up": TOPK}, kept="r0001/alice/a1")
    assert result.fresh
    assert not do("r0002/bob/a1", models, codec={"up": [{"name": "zstd"}]}, kept="r0001/bob/a1").fresh


def test_what_loses_nothing_leaves_nothing(do, first, tmp_path):  # noqa: F811
    up = [{"name": "delta"}, {"name": "zstd"}]
    models = first()
    do("r0001/plain/a1", models)
    do("r0001/alice/a1", models, codec={"up": up})
    assert not (tmp_path / "r0001-alice-a1/state.safetensors").exists()
    true = dict(Weights.open(tmp_path / "r0001-plain-a1/update.safetensors"))
    came = arrived(tmp_path, "r0001/alice/a1", models["base"], up)
    assert all(torch.equal(came[name], true[name]) for name in true)


def test_only_trainings_of_a_round_are_coded(do, first, tmp_path):  # noqa: F811
    models = first(codec={"up": TOPK})
    do("r0000/alice/s1", models, codec={"up": TOPK})
    assert Weights.open(tmp_path / "r0000-alice-s1/update.safetensors").spec == Weights.open(models["base"]).spec


class TestAModelThatIsMadeOnTheNode:
    @pytest.fixture
    def site(self, tmp_path):
        """Blobs of a node that has a model, and the task that names the next one."""
        from fedctl.downlink import shorten

        blobs = Blobs(tmp_path / "blobs")
        blobs.folder.mkdir()
        before, made = tmp_path / "before.safetensors", tmp_path / "made.safetensors"
        save(before, {"w": torch.zeros(50, 4), "n": torch.tensor(1)})
        save(made, {"w": torch.randn(50, 4), "n": torch.tensor(2)})
        down = [{"name": "delta"}, {"name": "int8"}, {"name": "zstd"}]
        difference = tmp_path / "difference.safetensors"
        shortened = shorten(
            made,
            pipeline=Pipeline.of(down),
            seed=seed_of_model(digest(before)),
            previous=before,
            residual=tmp_path / "none",
            model_out=tmp_path / "after.safetensors",
            difference_out=difference,
            residual_out=tmp_path / "residual.safetensors",
        )
        for path in (before, difference):
            blobs.path(digest(path).digest).write_bytes(path.read_bytes())
        task = Task(
            key=TaskKey.parse("r0002/alice/a1"),
            **COMMON,
            model_args={},
            trainer={},
            models={"base": shortened.model, DIFFERENCE: shortened.difference},
            codec={"down": down},
            previous=digest(before),
        )
        return blobs, task

    def test_is_the_coordinators_to_the_bit(self, site):
        blobs, task = site
        assert is_model_here(task, blobs)
        assert blobs.verify(task.models["base"].digest)
        assert is_model_here(task, blobs)
        assert {path.name for path in blobs.folder.iterdir() if path.suffix != ".making"} == {
            task.models["base"].digest,
            task.models[DIFFERENCE].digest,
            task.previous.digest,
        }

    @pytest.mark.parametrize("label", ["previous", DIFFERENCE])
    @pytest.mark.parametrize("is_there", [True, False], ids=["damaged", "gone"])
    def test_is_asked_for_where_it_cannot_be_made(self, site, label, is_there):
        blobs, task = site
        path = blobs.path((task.previous if label == "previous" else task.models[label]).digest)
        path.write_bytes(path.read_bytes()[:-1] + b"x") if is_there else path.unlink()
        assert not is_model_here(task, blobs)
        assert blobs.is_wanted(task.models["base"].digest)
        assert not blobs.verify(task.models["base"].digest)

    def test_is_asked_for_where_other_bits_come_of_it(self, site):
        blobs, task = site
        other = {"down": [{"name": "delta"}, {"name": "int4"}, {"name": "zstd"}]}
        from dataclasses import replace

        assert not is_model_here(replace(task, codec=other), blobs)
        assert blobs.is_wanted(task.models["base"].digest)
