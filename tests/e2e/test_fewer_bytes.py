"""Codecs through the real command: fewer bytes, nothing lost, and the same bits after a kill."""

import os
import signal

import pytest
import torch

from fedctl.weights import Weights
from tests.e2e.conftest import Place
from tests.e2e.test_personal import DATA, FEDERATION, MODEL, kept_by, launch, of_kind, same, weights

CODEC = "codec={up: [delta, topk: {keep: 0.1, whole: 0}, int8, zstd], down: [delta, int8, zstd]}"
ROUNDS = "rounds=4"
WIDE = "task.model_args={wide: 512}"


@pytest.fixture(scope="module")
def place(make_place) -> Place:
    place = make_place("blank")
    wide = MODEL.replace("whim=False", "whim=False, wide=8")
    wide = wide.replace("Linear(4, 8), torch.nn.BatchNorm1d(8)", "Linear(4, wide), torch.nn.BatchNorm1d(wide)")
    wide = wide.replace("Linear(8, 2)", "Linear(wide, 2)")
    for name, text in {"fed.yaml": FEDERATION, "model.py": wide, "data.py": DATA}.items():
        (place.folder / name).write_text(text)
    launch(place, "calm", CODEC, ROUNDS, WIDE)
    return place


def test_models_and_updates_travel_as_fewer_bytes(place):
    status = place.json("status", "calm")
    size = status["model"]["size"]
    received = of_kind(place, "calm", "UpdateReceived")
    assert len(received) == 8
    for event in received.values():
        assert event["bytes"]["raw_received"] >= size
        assert 0 < event["bytes"]["received"] < size / 4
        assert event["update"]["size"] == size, "behind the door it is an update like any other"
    sent = [
        event["bytes"]["sent"]
        for kind in ("UpdateReceived", "ModelEvaluated")
        for event in of_kind(place, "calm", kind).values()
    ]
    rounds = of_kind_aggregated(place, "calm")
    assert sum(sent) == size + sum(event["difference"]["size"] for event in rounds), (
        "the first one whole, once to the machine"
    )
    assert status["bytes"]["raw_sent"] == 5 * size
    assert status["bytes"]["sent"] < 2.5 * size


def test_nodes_hold_the_coordinators_models_to_the_bit(place):
    digest = place.json("status", "calm")["model"]["digest"]
    assert (place.home / "blobs" / digest).read_bytes() == (place.folder / "runs/calm/model.safetensors").read_bytes()
    first = of_kind_aggregated(place, "calm")[0]
    assert not (place.home / "blobs" / first["model"]["digest"]).exists(), "what nobody starts from is gone"
    assert not (place.home / "blobs" / first["difference"]["digest"]).exists()


def test_what_was_lost_waits_on_the_node_and_here(place):
    kept = kept_by(place, "calm", "left")["r0004-left-a1"]
    assert {name for name in kept if name.startswith("residual/")} >= {"residual/body.0.weight", "residual/head.weight"}
    here = weights(place, "calm", "rounds/0004/residual.safetensors")
    assert here["body.0.weight"].abs().max() > 0
    assert "body.1.running_var" not in here


def test_it_learns(place):
    accuracy = place.json("status", "calm")["history"]
    assert [entry["round"] for entry in accuracy] == [0, 1, 2, 3, 4]
    first, last = weights(place, "calm", "rounds/0000/model.safetensors"), weights(place, "calm", "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in last.values())
    assert not same(first, last)


def test_killed_and_resumed_it_gives_the_same_bits(place):
    slow = "task.model_args={wide: 512, pace: 0.02}"
    with place.start("launch", "--run", "killed", "--set", CODEC, "--set", ROUNDS, "--set", slow) as process:
        place.wait_for(lambda events: any(event.get("task") == "r0002/left/a1" for event in events), "killed")
        for pid in {process.pid, *place.processes()}:
            os.kill(pid, signal.SIGKILL)
    place.fedctl("launch", "--resume", "killed")
    assert same(weights(place, "killed", "model.safetensors"), weights(place, "calm", "model.safetensors"))
    for node in ("left", "right"):
        one, other = (kept_by(place, run, node)[f"r0004-{node}-a1"] for run in ("killed", "calm"))
        assert same(one, other)


def test_a_node_that_lost_its_model_is_sent_the_whole(place):
    place.fedctl("launch", "--run", "lost", "--hold", "--set", CODEC, "--set", ROUNDS, "--set", WIDE)
    place.fedctl("aggregate", "lost", "--commit")
    for blob in (place.home / "blobs").iterdir():
        blob.unlink()
    place.fedctl("launch", "--resume", "lost", "--hold")
    sent = [
        event["bytes"]["sent"]
        for kind in ("UpdateReceived", "ModelEvaluated")
        for task, event in of_kind(place, "lost", kind).items()
        if task.startswith("r0002") or (task.startswith("r0001") and "/e" in task)
    ]
    size = place.json("status", "lost")["model"]["size"]
    assert sum(sent) >= size
    assert len(of_kind(place, "lost", "UpdateReceived")) == 4
    what_if = place.json("aggregate", "lost", "--strategy", "median")
    assert {entry["name"] for entry in what_if["contributors"]} == {"left", "right"}


@pytest.mark.parametrize(
    ("codec", "said"),
    [
        ("[delta, topkk]", "did you mean `topk`?"),
        ("[zstd, delta]", "delta should stand before zstd"),
        ("[delta, topk: {keep: 2}]", "--set codec: topk/keep: should be above 0 and at most 1"),
        ("[delta, topk: {kept: 0.1}]", "did you mean `keep`?"),
        ("[topk]", "put `delta` before topk"),
        ("{up: [delta], down: [delta, powersgd]}", "powersgd gives other bits on another machine"),
        ("[delta, 7]", "should be a codec or a list of them"),
        ("[mine.py:Codec]", "mine:Codec cannot be imported"),
    ],
)
def test_what_makes_no_sense_is_refused(place, codec, said):
    refused = place.fedctl("launch", "--run", "refused", "--set", f"codec={codec}", code=3)
    assert said in refused.stderr
    assert not (place.folder / "runs/refused").exists()


def test_a_codec_of_ones_own(place):
    (place.folder / "halved.py").write_text(
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n\n"
        "@dataclass(frozen=True)\n"
        "class Halved:\n"
        "    '''Keeps the first half of the values.'''\n"
        "    step: ClassVar[str] = 'selection'\n"
        "    carried: ClassVar[int] = 1\n"
        "    exact_everywhere: ClassVar[bool] = True\n\n"
        "    def layout(self, spec):\n"
        "        return (type(spec)(spec.dtype, ((spec.count + 1) // 2,)),)\n\n"
        "    def encode(self, values, seed):\n"
        "        return (values.reshape(-1)[: (values.numel() + 1) // 2].clone(),)\n\n"
        "    def decode(self, parts, spec, seed):\n"
        "        whole = parts[0].new_zeros(spec.count)\n"
        "        whole[: len(parts[0])] = parts[0]\n"
        "        return whole.view(spec.shape)\n"
    )
    launch(place, "own", "codec=[delta, halved.py:Halved, int8]", "rounds=1", WIDE)
    assert place.events("own")[-1]["event"] == "RunFinished"
    first, update = (
        weights(place, "own", "rounds/0000/model.safetensors"),
        weights(place, "own", "rounds/0001/updates/left.safetensors"),
    )
    half = first["body.0.weight"].numel() // 2
    moved = (update["body.0.weight"] != first["body.0.weight"]).reshape(-1)
    assert moved[:half].any()
    assert not moved[half:].any()


def of_kind_aggregated(place: Place, run: str) -> list[dict]:
    return [event for event in place.events(run) if event["event"] == "RoundAggregated"]


def test_updates_are_files_as_before(place):
    for path in (place.folder / "runs/calm/rounds").glob("*/updates/*"):
        assert Weights.open(path).spec == Weights.open(place.folder / "runs/calm/model.safetensors").spec
    assert not list((place.folder / "runs/calm/rounds").glob("*/wire/*"))
    assert torch.load(place.folder / "runs/calm/model.ckpt", weights_only=True)["state_dict"]
