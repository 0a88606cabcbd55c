"""Updates that poison, and agents that flood, lie or fall silent: a task that fails with a reason, soon."""

import hashlib
import json
import pickle
import struct
import sys
import time
import tracemalloc
import zipfile
from datetime import UTC, datetime
from io import BytesIO

import pytest
import torch

from fedctl import rundir, weights
from fedctl.actions import Perform
from fedctl.connection import Connection
from fedctl.errors import NodeError
from fedctl.events import NodeLost, TaskFailed, UpdateReceived
from fedctl.federation import Federation, Limits, Node, TaskSpec
from fedctl.host import Host, Work
from fedctl.jobs import perform
from fedctl.records import Blob, Result, TaskKey
from fedctl.transports.local import LocalTransport

KEY = TaskKey(round=1, node="mallory")
NORMAL = Limits()
AGENT = """
import itertools, json, sys, time
from pathlib import Path
from fedctl.node.agent import GREETING, encode_frame, read_frame

def write(data):
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()

def send(header, body=b""):
    write(encode_frame(header, body))

def push(result):
    send({"push": "result", "key": "r0001/mallory/a1", "result": result})

hello = {"protocol": 1, "cpus": 1, "memory": 1, "disk_free": 1, "time": 1, "python": "3.11.0", "system": "Linux",
         "hostname": "h", "home": "/h", "has": {"bundle": True}}
content, result, deed = Path(sys.argv[1]).read_bytes(), json.loads(sys.argv[2]), sys.argv[3]
sys.stdout.buffer.write(GREETING)
while frame := read_frame(sys.stdin.buffer.read):
    asked = frame[0]
    if asked["op"] == "hello":
        send({"re": asked["id"], **hello})
    elif asked["op"] == "stat":
        send({"re": asked["id"], "blobs": {digest: {"whole": True} for digest in asked["digests"]}})
    elif asked["op"] == "read":
        offset = asked["offset"]
        send({"re": asked["id"], "size": len(content)}, content[offset:offset + asked["limit"]])
    elif asked["op"] == "start" and not deed.startswith("mute"):
        send({"re": asked["id"], "state": "started"})
        exec(deed)
"""
"""A whole agent as far as it goes, that does some deed once a task has been started."""


class Instead:
    """Runs the stand-in whatever is asked for."""

    def __init__(self, *argv):
        self.argv = argv
        self.opened = []

    def open(self, _argv):
        self.opened.append(LocalTransport().open(self.argv))
        return self.opened[-1]


@pytest.fixture
def model():
    return {"net.w": torch.linspace(-1, 1, 15).reshape(3, 5), "steps": torch.tensor(4)}


@pytest.fixture
def train(tmp_path, model):
    """What becomes of a task whose node returns this content, says this of it, or does this instead."""
    made = []

    def train(content=b"", deed="push(result)", *, limits=NORMAL, needs_steps=False, **said):
        run = rundir.create(tmp_path, f"run{len(made)}", configuration="", bundle=b"code", facts={})
        run.round_model(0).parent.mkdir(parents=True)
        base = weights.save(run.round_model(0), model)
        (tmp_path / "content").write_bytes(content)
        blob = Blob(digest=hashlib.sha256(content).hexdigest(), size=len(content))
        result = {**Result(key=KEY, examples=10, update=blob, seconds=1.0).to_json(), **said}
        transport = Instead(sys.executable, "-c", AGENT, str(tmp_path / "content"), json.dumps(result), deed)
        work = Work(run="r", identity="i", bundle=blob, bundle_path=tmp_path / "code", preload=(), cwd="")
        made.append((host := Host(transport, python=sys.executable, slots=1, work=work), transport))
        event = perform(
            Perform(task=KEY, models={"base": base}),
            federation=Federation(
                name="f",
                folder=tmp_path,
                task=TaskSpec(model="model.py:Net", data="data.py:Data", trainer={"max_epochs": 2}),
                nodes=(Node(name=KEY.node),),
                limits=limits,
            ),
            needs_steps=needs_steps,
            host=host,
            run=run,
            clock=lambda: datetime.now(UTC),
            tell=lambda _: None,
            progressed=lambda _: None,
        )
        assert run.update(1, KEY.node).exists() == isinstance(event, UpdateReceived)
        return event

    yield train
    for host, transport in made:
        host.close()
        for process in transport.opened:
            process.kill()


@pytest.fixture
def content_of(tmp_path):
    def content_of(tensors):
        weights.save(tmp_path / "saved", tensors)
        return (tmp_path / "saved").read_bytes()

    return content_of


def test_an_honest_update_is_received(train, model, content_of):
    assert isinstance(train(content_of(model)), UpdateReceived)


W = torch.ones(3, 5)
POISON = {
    "NaN": ({"net.w": W * torch.nan}, "its update: tensor `net.w` has NaN or infinite values"),
    "infinite": ({"net.w": W / 0}, "its update: tensor `net.w` has NaN or infinite values"),
    "another shape": ({"net.w": W.t()}, "its update: tensor `net.w` is float32 [5, 3], the model has float32 [3, 5]"),
    "another type": (
        {"net.w": W.double()},
        "its update: tensor `net.w` is float64 [3, 5], the model has float32 [3, 5]",
    ),
    "missing": ({"net.w": None}, "its update: tensor `net.w` is missing, the model has it"),
    "extra": ({"../../x": W}, "its update: unexpected tensor `../../x`, the model has none of that name"),
    "gigantic": ({"net.w": W * 1e30}, "its update lies 3.87e+30 from the model, whose norm is 2.39, further than"),
}


@pytest.mark.parametrize(("tensors", "reason"), POISON.values(), ids=POISON)
def test_a_poisoned_update_is_refused_by_name_and_not_asked_for_again(train, model, content_of, tensors, reason):
    event = train(content_of({name: value for name, value in {**model, **tensors}.items() if value is not None}))
    assert isinstance(event, TaskFailed)
    assert event.reason.startswith(reason)
    assert not event.retryable


def zipped():
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", b"x")
    return file.getvalue()


def framed(header):
    return struct.pack("<Q", len(header)) + header


ENTRY = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
DISGUISES = {
    "zip": (zipped(), "it is a zip archive"),
    "pickle": (pickle.dumps({"w": 1}), "it is a pickle"),
    "nothing": (b"", "it is empty"),
    "a long header": (struct.pack("<Q", 2**63), "it claims a header of 9223372036854775808 bytes"),
    "a huge tensor": (
        framed(b'{"w":{"dtype":"F32","shape":[25000000000],"data_offsets":[0,100000000000]}}'),
        "it has 83 bytes, its header describes 100000000083",
    ),
    "a name twice": (framed(b'{"w":' + ENTRY + b',"w":' + ENTRY + b"}") + bytes(4), "JSON that has 'w' twice"),
    "depth": (framed(b"[" * 100_000), "nested too deeply"),
}


@pytest.mark.parametrize(("content", "reason"), DISGUISES.values(), ids=DISGUISES)
def test_what_is_no_safetensors_file_is_refused_by_name(train, content, reason):
    event = train(content)
    assert isinstance(event, TaskFailed)
    assert event.reason.startswith("its update: not a sound safetensors file: ")
    assert reason in event.reason
    assert not event.retryable


def test_a_claim_of_100_gb_is_refused_before_a_byte_of_it_comes(train):
    event = train(update={"digest": "0" * 64, "size": 10**11})
    assert event.reason.startswith("its update is 100,000,000,000 bytes, of a model of ")
    assert not event.retryable


def test_more_examples_than_a_node_can_have_are_refused_and_the_bound_is_the_users(train, model, content_of):
    event = train(content_of(model), examples=2**53 - 1)
    assert event.reason == "it claims 9,007,199,254,740,991 examples, and `limits.examples` allows 1,000,000,000"
    assert not event.retryable
    assert isinstance(train(content_of(model), limits=Limits(examples=9)), TaskFailed)
    assert isinstance(train(content_of(model), examples=2**50, limits=Limits(examples=None)), UpdateReceived)


def test_more_steps_than_a_task_can_have_are_refused(train, model, content_of):
    """Two epochs of ten examples are twenty steps for each of several optimizers."""
    event = train(content_of(model), steps=2**52)
    assert event.reason == "it claims 4,503,599,627,370,496 steps, and its task can have 320"
    assert not event.retryable
    assert isinstance(train(content_of(model), steps=320), UpdateReceived)


def test_no_step_at_all_is_refused_where_the_strategy_counts_them(train, model, content_of):
    event = train(content_of(model), needs_steps=True)
    assert event.reason.startswith("it tells of no optimizer step")
    assert isinstance(train(content_of(model), needs_steps=True, steps=1), UpdateReceived)
    assert isinstance(train(content_of(model)), UpdateReceived)


def test_how_far_an_update_may_lie_from_the_model_is_the_users_to_say(train, model, content_of):
    far = content_of({**model, "net.w": W * 1e30})
    assert isinstance(train(far, limits=Limits(norm=None)), UpdateReceived)
    assert isinstance(train(content_of({**model, "net.w": W}), limits=Limits(norm=0.01)), TaskFailed)


LIES = {
    "a result that is none": (
        "push({'key': 5})",
        "the node's result is not one",
    ),
    "a result of another": ("push({**result, 'key': 'r0001/alice/a1'})", "the node answered for r0001/alice/a1"),
    "no update": ("push({**result, 'update': None})", "the node returned no update"),
    "an answer unasked": ("send({'re': 99})", "it answers what it was not asked"),
    "a name twice": (
        'write(bytes([0, 0, 0, 19, 0, 0, 0, 0]) + b\'{"push":1,"push":2}\')',
        "JSON that has a name twice",
    ),
    "garbage": ("write(b'segmentation fault')", "a frame claims"),
    "a flood of strange pushes": ("while True: send({'push': 'gossip'})", "floods the line"),
    "a flood of large pushes": ("while True: send({'push': 'gossip'}, bytes(2**20))", "floods the line"),
    "a flood of progress": (
        "while True: send({'push': 'progress', 'key': result['key'], 'progress': {'x': 'y' * 50_000}})",
        "floods the line",
    ),
}


@pytest.mark.parametrize(("deed", "reason"), LIES.values(), ids=LIES)
def test_an_agent_that_lies_or_floods_fails_its_task_by_name_and_is_not_tried_again(train, deed, reason):
    event = train(deed=deed)
    assert isinstance(event, TaskFailed)
    assert reason in event.reason
    assert not event.retryable


@pytest.mark.parametrize("flood", ["large pushes", "progress"])
def test_a_flood_takes_little_room(train, flood):
    tracemalloc.start()
    try:
        event = train(deed=LIES[f"a flood of {flood}"][0])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(event, TaskFailed)
    assert peak < 32 * 2**20


def test_results_without_end_are_one(train, model, content_of):
    assert isinstance(train(content_of(model), "for _ in range(5000): push(result)"), UpdateReceived)


def test_an_update_that_is_not_the_announced_one_is_no_update(train, model, content_of):
    event = train(content_of(model), update={"digest": "0" * 64, "size": len(content_of(model))})
    assert event.reason == "the file's bytes are not those that were announced"
    event = train(content_of(model), update={"digest": "0" * 64, "size": 77})
    assert "announced" in event.reason


def test_an_agent_that_never_answers_is_lost_and_may_come_back(train, monkeypatch):
    monkeypatch.setattr(Connection.__init__, "__kwdefaults__", {"answer_s": 0.3})
    monkeypatch.setattr(Connection.open.__func__, "__kwdefaults__", {"home": "", "needs": None, "answer_s": 2.0})
    event = train(deed="mute")
    assert isinstance(event, NodeLost)
    assert event.passing
    assert "has not answered `start`" in event.reason


def test_a_login_that_prints_slowly_for_ever_is_given_up(tmp_path):
    transport = Instead("sh", "-c", "while :; do echo wait; sleep 0.05; done")
    began = time.monotonic()
    with pytest.raises(NodeError, match="ran something else than fedctl's agent: wait"):
        Connection.open(transport, sys.executable, answer_s=0.5)
    assert time.monotonic() - began < 30


def test_what_stands_on_stderr_without_end_holds_nothing_up(train, model, content_of):
    deed = "sys.stderr.write('x' * 10_000_000); sys.stderr.flush(); push(result)"
    assert isinstance(train(content_of(model), deed), UpdateReceived)
