import json
import struct
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl.errors import ModelError
from fedctl.soundness import check_update
from fedctl.weights import Weights, save
from tests.fuzz import JSON, each_of, mutated

MODEL = {"net.w": torch.linspace(-1, 1, 12).reshape(3, 4), "net.b": torch.zeros(3, dtype=torch.bfloat16)}
MOST = 8 * 2**20


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("updates") / "update.safetensors"


@pytest.fixture(scope="module")
def sound(place):
    save(place, MODEL)
    return place.read_bytes()


def judge(place, content):
    """A file of tensors that can all be read, or a ModelError; whatever it claims, it takes little memory."""
    place.unlink(missing_ok=True)
    place.write_bytes(content)
    refusal = "none"
    tracemalloc.start()
    try:
        found = Weights.open(place, what="its update")
        for name in found:
            assert tuple(found[name].shape) == found.spec[name].shape
        check_update(found, MODEL, farthest=1000.0)
    except ModelError as error:
        refusal = error.message
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MOST
    assert refusal.isprintable()


@each_of("updates")
def test_the_corpus_is_sound_or_refused(place, content):
    judge(place, content)


@given(data=st.data())
@settings(max_examples=250, deadline=None)
def test_a_damaged_file_is_sound_or_refused(place, sound, data):
    judge(place, mutated(data, sound))


@given(data=st.data())
@settings(max_examples=250, deadline=None)
def test_a_header_that_says_something_else_is_sound_or_refused(place, sound, data):
    (length,) = struct.unpack("<Q", sound[:8])
    header = json.loads(sound[8 : 8 + length])
    entry = header[data.draw(st.sampled_from(["net.w", "net.b"]))]
    field = data.draw(st.sampled_from(sorted(entry)))
    numbers = st.lists(st.integers(-2, 2**70) | st.integers(0, 60), max_size=4)
    entry[field] = data.draw(numbers | JSON | st.sampled_from(["F64", "BOOL", "C64", "I8"]))
    text = json.dumps(header).encode()
    judge(place, struct.pack("<Q", len(text)) + text + sound[8 + length :])
