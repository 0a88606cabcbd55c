"""What leaves a node: real files of updates, in the clear, coded, packed and masked, and results of workers."""

import json
import struct

import pytest
import torch

from fedctl.codecs.pipeline import Pipeline
from fedctl.codecs.wire import Outgoing
from fedctl.node.agent import open_own
from fedctl.node.owner.departure import KEPT_BACK, allowed_error, allowed_words, leaving, may_read, names_in
from fedctl.node.owner.terms import DifferentialPrivacy, Leave, Policy, SecureAggregation, Tensors
from fedctl.records import Progress, Result, Score, TaskKey
from fedctl.weights import CONTROL, save, spec_of

KEY = TaskKey(round=1, node="alice")
MODEL = {"body.weight": torch.ones(40, 40), "body.bias": torch.ones(40), "head.weight": torch.ones(4, 40)}
ENCODER_ONLY = Policy(leave=Leave(tensors=Tensors(only=("body.*",))))
NO_HEAD = Policy(leave=Leave(tensors=Tensors(kept=("head.*",))))


def result(**fields):
    return json.loads(json.dumps(Result(key=KEY, **fields).to_json()))


@pytest.fixture
def update(tmp_path):
    def update(tensors=MODEL, codec=()):
        path = tmp_path / "update.safetensors"
        if not codec:
            save(path, tensors)
        else:
            base = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
            outgoing = Outgoing(pipeline=Pipeline.of([{"name": name} for name in codec]), tensors=tensors, base=base)
            outgoing.save(path, spec_of(tensors))
        return path

    return update


def without_head():
    return {name: tensor for name, tensor in MODEL.items() if not name.startswith("head")}


@pytest.mark.parametrize("policy", [ENCODER_ONLY, NO_HEAD])
@pytest.mark.parametrize("codec", [(), ("delta", "int8"), ("delta", "topk", "bf16")])
def test_a_tensor_leaves_by_its_name_also_where_codecs_made_parts_of_it(update, policy, codec):
    said = result(tensors=tuple(MODEL))
    assert "does not let tensor 'head.weight' leave" in leaving(policy, said, update(codec=codec))
    assert leaving(policy, said, update(without_head(), codec=codec)) is None
    assert leaving(Policy(), said, update(codec=codec)) is None
    gone = update(codec=codec)
    gone.unlink()
    assert leaving(policy, said, gone) is None


@pytest.mark.parametrize("codec", [("zstd",), ("delta", "int4", "zstd")])
def test_a_stream_is_judged_by_what_it_stands_for(update, codec):
    packed = update(codec=codec)
    with open_own(packed, buffering=0) as file:
        assert names_in(file) == {"packed"}
    assert "does not let tensor 'head.weight' leave" in leaving(NO_HEAD, result(tensors=tuple(MODEL)), packed)
    assert leaving(NO_HEAD, result(tensors=("body.weight",)), packed) is None
    assert "does not say which tensors" in leaving(NO_HEAD, result(), packed)
    assert leaving(Policy(), result(), packed) is None


def test_what_goes_beside_a_tensor_is_judged_as_the_tensor(update):
    beside = update({CONTROL + name: tensor for name, tensor in MODEL.items()})
    assert "'control/head.weight'" in leaving(NO_HEAD, result(), beside)


def test_where_masks_are_asked_for_nothing_else_leaves(update):
    policy = Policy(secure_aggregation=SecureAggregation(required=True), leave=NO_HEAD.leave)
    said = result(tensors=("body.weight", "body.bias"))
    assert "lets no update leave that is not masked" in leaving(policy, said, update())
    assert "not masked" in leaving(policy, said, update({"masked": torch.ones(9), **MODEL}))
    masked = update({"masked": torch.ones(9, dtype=torch.int64)})
    assert leaving(policy, said, masked) is None
    assert "'head.weight'" in leaving(policy, result(tensors=("head.weight",)), masked)


def test_where_noise_is_asked_for_an_update_without_its_meter_stays(update):
    policy = Policy(differential_privacy=DifferentialPrivacy(epsilon=8.0))
    meter = {"noise": 1.0, "rate": 0.1, "steps": 10, "epsilon": 0.5, "delta": 1e-5}
    assert "lets no update leave without noise" in leaving(policy, result(), update())
    assert "without noise" in leaving(policy, result(privacy={**meter, "noise": 0.0}), update())
    assert leaving(policy, result(privacy=meter), update()) is None
    central = Policy(differential_privacy=DifferentialPrivacy(epsilon=8.0, modes=("central",)))
    assert leaving(central, result(), update()) is None, "its noise comes later"


def test_a_file_that_is_not_all_tensors_stays(update):
    path = update()
    whole = path.read_bytes()
    path.write_bytes(whole + b"and all my patients")
    assert "it holds more than its tensors" in leaving(Policy(), result(), path)
    head = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [9, 10]}}).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"patients!!")
    assert "do not follow each other" in leaving(Policy(), result(), path)
    for content in (b"", b"1234567", struct.pack("<Q", 2**40) + b"{}", struct.pack("<Q", 2) + b"[]", b"\0" * 8):
        path.write_bytes(content)
        assert "the update cannot be judged" in leaving(Policy(), result(), path)
    head = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":["x",1]}}'
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"!")
    assert "the update cannot be judged" in leaving(Policy(), result(), path)
    other = path.with_name("other.safetensors")
    path.write_bytes(whole)
    path.rename(other)
    path.symlink_to(other)
    assert "the update cannot be judged" in leaving(Policy(), result(), path)


def test_metrics_leave_by_name():
    policy = Policy(leave=Leave(metrics=("val_*",)))
    scores = {"global": Score(examples=9, metrics={"val_loss": 1.0, "patients": 7.0})}
    said = result(metrics={"val_loss": 1.0, "train_loss": 2.0}, scores=scores)
    allowed = allowed_words(policy, said)
    assert allowed["metrics"] == {"val_loss": 1.0}
    assert allowed["scores"]["global"] == {"examples": 9, "metrics": {"val_loss": 1.0}}
    assert Result.from_json(allowed).metrics == {"val_loss": 1.0}
    assert said["metrics"] == {"val_loss": 1.0, "train_loss": 2.0}, "what is on the disk stays as it is"
    progress = Progress(key=KEY, phase="training", metrics={"train_loss": 2.0}).to_json()
    assert Progress.from_json(allowed_words(policy, progress)).metrics == {}
    assert allowed_words(Policy(), said) == {**said, "detail": ""}


def test_errors_and_logs_quote_no_data():
    said = result(error="data.py:29: ValueError: Ann Example, born 1951, has no x-ray", detail="Traceback: Ann Example")
    assert allowed_words(Policy(), said)["error"] == "data.py:29: ValueError"
    assert allowed_words(Policy(), said)["detail"] == ""
    open_logs = Policy(leave=Leave(logs=True))
    assert allowed_words(open_logs, said) == said
    assert "lets no logs leave" in may_read(Policy(), "train.log")
    assert may_read(open_logs, "train.log") is None
    assert may_read(Policy(), "update.safetensors") is None
    declined = result(error="outside its hours until Fri 20:00", ask_again_s=60.0)
    assert allowed_words(Policy(), declined)["error"] == "outside its hours until Fri 20:00"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate", "OutOfMemoryError"),
        (
            "lib/rows.py:3: FileNotFoundError: [Errno 2] No such file or directory: '/srv/xrays/ann_example.png'",
            "lib/rows.py:3: FileNotFoundError: [Errno 2] No such file or directory",
        ),
        ("OSError: [Errno 28] No space left on device", "OSError: [Errno 28] No space left on device"),
        ("KeyError: 'Ann Example'", "KeyError"),
        ("the process was killed by the kernel: out of memory", "the process was killed by the kernel: out of memory"),
        (
            "the process was killed by SIGKILL (out of memory, or by hand)",
            "the process was killed by SIGKILL (out of memory, or by hand)",
        ),
        ("the process ended with status 1", "the process ended with status 1"),
        ("cancelled", "cancelled"),
        ("cancelled for Ann Example", KEPT_BACK),
        ("Ann Example has no x-ray", KEPT_BACK),
        ("the worker does not stay: Ann Example", KEPT_BACK),
        ("", KEPT_BACK),
    ],
)
def test_of_an_error_its_kind_and_its_line_are_told(text, kept):
    assert allowed_error(Policy(), text) == kept
    assert allowed_error(Policy(leave=Leave(logs=True)), text) == text
