import json
import pickle
import struct
from importlib.metadata import version
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl.errors import ModelError
from fedctl.header import TensorSpec, read_header
from fedctl.soundness import check_finite, check_update
from fedctl.weights import (
    Lazy,
    Weights,
    digest,
    read_file,
    read_hyper_parameters,
    save,
    save_checkpoint,
    spec_of,
)

DTYPES = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
    "complex64",
)


def of_every_kind() -> dict[str, torch.Tensor]:
    tensors = {dtype: torch.arange(6).reshape(2, 3).to(getattr(torch, dtype)) for dtype in DTYPES}
    tied = torch.randn(4)
    return {
        **tensors,
        "scalar": torch.tensor(3.5),
        "nothing": torch.empty(0, 7),
        "transposed": torch.randn(3, 5).t(),
        "sliced": torch.randn(9)[1::2],
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "a.tied": tied,
        "b.tied": tied,
    }


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    as_bytes = [t.contiguous().resolve_conj().reshape(-1).view(torch.uint8) for t in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*as_bytes)


def test_what_is_saved_is_read_back_and_the_library_agrees(tmp_path):
    tensors = of_every_kind()
    path = tmp_path / "m.safetensors"
    blob = save(path, tensors, {"codec": "none"})
    weights, loaded = Weights.open(path), safetensors.torch.load_file(path)
    assert weights.keys() == loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert same_bits(weights[name], tensor), name
        assert same_bits(loaded[name], tensor), name
    assert weights.metadata == {"format": "pt", "codec": "none"}
    assert weights.spec["scalar"] == TensorSpec("float32", ())
    assert blob == digest(path)
    assert blob.size == path.stat().st_size
    assert names_in(tmp_path) == ["m.safetensors"]


def test_what_the_library_saves_is_read(tmp_path):
    tensors = {name: t.contiguous().clone() for name, t in of_every_kind().items() if name != "conjugate"}
    safetensors.torch.save_file(tensors, tmp_path / "m.safetensors", metadata={"by": "the library"})
    weights = Weights.open(tmp_path / "m.safetensors")
    assert all(same_bits(weights[name], tensor) for name, tensor in tensors.items())


def test_tensors_start_at_multiples_of_their_size(tmp_path):
    save(tmp_path / "m", {"a": torch.ones(3, dtype=torch.int8), "b": torch.ones(3), "c": torch.ones(3).double()})
    assert list(Weights.open(tmp_path / "m")) == ["c", "b", "a"]
    save(tmp_path / "m", of_every_kind())
    header = read_header(tmp_path / "m")
    assert all(start % header.spec[name].item_size == 0 for name, start in header.starts.items())


def test_the_same_tensors_in_another_order_give_the_same_bytes(tmp_path):
    tensors = of_every_kind()
    first = save(tmp_path / "a", tensors, {"x": "1", "y": "2"})
    assert save(tmp_path / "b", dict(reversed(tensors.items())), {"y": "2", "x": "1"}) == first


@given(
    st.dictionaries(
        st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=20).filter(
            lambda n: n != "__metadata__"
        ),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4)),
        max_size=8,
    )
)
@settings(max_examples=50, deadline=None)
def test_any_names_dtypes_and_shapes_survive(tmp_path_factory, kinds):
    path = tmp_path_factory.mktemp("w") / "m.safetensors"
    tensors = {name: torch.ones(shape, dtype=getattr(torch, dtype)) for name, (dtype, shape) in kinds.items()}
    save(path, tensors)
    loaded, weights = safetensors.torch.load_file(path), Weights.open(path)
    assert loaded.keys() == weights.keys() == tensors.keys()
    assert all(same_bits(weights[n], t) and same_bits(loaded[n], t) for n, t in tensors.items())


def test_an_unaligned_file_is_read(tmp_path):
    header = {"a": entry("I8", [1], [0, 1]), "b": entry("F32", [2], [1, 9])}
    weights = Weights.open(write(tmp_path / "m", header, b"\x07" + struct.pack("<2f", 1.5, -2)))
    assert weights["a"].tolist() == [7]
    assert weights["b"].tolist() == [1.5, -2]
    assert weights["b"].data_ptr() % 4 == 0


def test_writing_to_a_tensor_never_changes_the_file(tmp_path):
    save(tmp_path / "m", {"w": torch.zeros(3)})
    before = digest(tmp_path / "m")
    Weights.open(tmp_path / "m")["w"].add_(1)
    assert digest(tmp_path / "m") == before


def test_thousands_of_files_may_be_in_use(tmp_path):
    save(tmp_path / "m", {"w": torch.arange(3.0)})
    before = len(names_in(Path("/proc/self/fd")))
    tensors = [Weights.open(tmp_path / "m")["w"] for _ in range(2_000)]
    assert sum(tensor[1].item() for tensor in tensors) == 2_000
    assert len(names_in(Path("/proc/self/fd"))) == before


UNSOUND = {
    "empty": b"",
    "seven bytes": b"1234567",
    "a zip": b"PK\x03\x04" + bytes(100),
    "a pickle": pickle.dumps({"w": [1, 2, 3]}),
    "a header longer than the file": struct.pack("<Q", 1_000) + b"{}",
    "a header of 2**64 - 1 bytes": b"\xff" * 8 + b"{}",
    "a header of no bytes": struct.pack("<Q", 0) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"{{{{",
    "no UTF-8": struct.pack("<Q", 4) + b'{"\xff"',
    "a list": struct.pack("<Q", 2) + b"[]",
    "a number of 9 000 digits": struct.pack("<Q", 9_000) + b"9" * 9_000,
}


@pytest.mark.parametrize("content", UNSOUND.values(), ids=UNSOUND)
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ModelError, match=f"^{tmp_path}/m: not a sound safetensors file: "):
        Weights.open(tmp_path / "m")


LYING = {
    "deep": b"[" * 1_000_000,
    "a name twice": b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{}}',
    "a field twice": b'{"w":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "NaN": b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}',
    "an empty name": {"": entry()},
    "a name that a terminal would obey": {"\x1b[2J": entry()},
    "an endless name": {"w" * 2_000: entry()},
    "half a surrogate": b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    "an entry too few": {"w": {"dtype": "F32", "shape": [2]}},
    "an entry too many": {"w": {**entry(), "code": "import os"}},
    "no entry": {"w": 3},
    "an unknown dtype": {"w": entry("F31")},
    "a dtype that is a list": {"w": entry(["F32"])},
    "a negative shape": {"w": entry(shape=[-2])},
    "a fractional shape": {"w": entry(shape=[2.0])},
    "a true shape": {"w": entry("F32", [True, 2])},
    "a shape that overflows": {"w": entry(shape=[2**32, 2**32], offsets=[0, 8])},
    "an empty shape that overflows": {"w": entry(shape=[2**48, 2**48, 0], offsets=[0, 0])},
    "a thousand dimensions": {"w": entry(shape=[1] * 1_000)},
    "a size that is not the shape's": {"w": entry(shape=[3])},
    "offsets past the end": {"w": entry(shape=[4], offsets=[0, 16])},
    "offsets backwards": {"w": entry(shape=[2], offsets=[8, 0])},
    "offsets far away": {"w": entry(offsets=[2**40, 2**40 + 8])},
    "three offsets": {"w": entry(offsets=[0, 8, 8])},
    "a gap": {"v": entry("F32", [1], [4, 8])},
    "an overlap": {"v": entry("F32", [2], [0, 8]), "w": entry("F32", [1], [4, 8])},
    "bytes left over": {"v": entry("F32", [1], [0, 4])},
    "metadata that is no object": {"__metadata__": [], "w": entry()},
    "metadata that is more than texts": {"__metadata__": {"a": {"b": 1}}, "w": entry()},
}


@pytest.mark.parametrize("header", LYING.values(), ids=LYING)
def test_a_header_that_lies_is_refused(tmp_path, header):
    with pytest.raises(ModelError, match=f"^{tmp_path}/m: not a sound safetensors file: "):
        Weights.open(write(tmp_path / "m", header, bytes(8)))


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_refused_or_read_in_full(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("w") / "m"
    save(path, {"weight": torch.ones(2, 2), "count": torch.tensor(3)})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        weights = Weights.open(path)
    except ModelError:
        return
    assert sum(tensor.nbytes for tensor in weights.values()) < len(content)


def test_a_file_beyond_the_bound_or_missing_is_refused(tmp_path):
    save(tmp_path / "m", {"w": torch.zeros(100)})
    with pytest.raises(ModelError, match="at most 400 are allowed"):
        Weights.open(tmp_path / "m", max_size=400)
    with pytest.raises(ModelError, match="n: cannot be read: No such file"):
        Weights.open(tmp_path / "n")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"w": torch.zeros(2, dtype=torch.complex128)},
            "`w` has the dtype complex128, which a safetensors file cannot",
        ),
        ({"w": torch.eye(2).to_sparse()}, "`w` is sparse"),
        ({"w": torch.empty(2, device="meta")}, "`w` is without values"),
        ({"w": 3.0}, "`w` is a float, no tensor"),
        ({"__metadata__": torch.zeros(2)}, "'__metadata__' cannot name a tensor"),
        ({"a\nb": torch.zeros(2)}, "cannot name a tensor"),
        (
            Lazy({"w": TensorSpec("float32", (2,))}, lambda _: torch.zeros(3)),
            r"float32 \[3\], float32 \[2\] was announced",
        ),
    ],
)
def test_what_cannot_be_saved_is_refused_and_nothing_is_left(tmp_path, tensors, message):
    (tmp_path / "m").write_bytes(b"the old one")
    with pytest.raises(ModelError, match=message):
        save(tmp_path / "m", tensors)
    assert names_in(tmp_path) == ["m"]
    assert (tmp_path / "m").read_bytes() == b"the old one"


def test_a_lazy_mapping_computes_each_tensor_once_when_saved(tmp_path):
    asked = []

    def compute(name):
        asked.append(name)
        return torch.full((2,), 7.0)

    spec = {name: TensorSpec("float32", (2,)) for name in "ba"}
    lazy = Lazy(spec, compute)
    assert len(lazy) == 2
    save(tmp_path / "m", lazy)
    assert asked == ["a", "b"]
    with pytest.raises(KeyError):
        lazy["c"]


MODEL = {"layer.weight": torch.zeros(3, 2), "bn.count": torch.tensor(4)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer.weight": None}, "update of alice: tensor `layer.weight` is missing, the model has it"),
        ({"extra": torch.zeros(1)}, "update of alice: unexpected tensor `extra`, the model has none of that name"),
        (
            {"layer.weight": torch.zeros(2, 3)},
            "update of alice: tensor `layer.weight` is float32 [2, 3], the model has float32 [3, 2]",
        ),
        ({"bn.count": torch.tensor(4.0)}, "update of alice: tensor `bn.count` is float32 [], the model has int64 []"),
        (
            {"layer.weight": torch.full((3, 2), torch.nan)},
            "update of alice: tensor `layer.weight` has NaN or infinite values",
        ),
    ],
)
def test_an_update_unlike_the_model_is_refused(change, message):
    update = {name: tensor for name, tensor in {**MODEL, **change}.items() if tensor is not None}
    with pytest.raises(ModelError) as error:
        check_update(update, MODEL, what="update of alice")
    assert str(error.value) == message
    check_update(MODEL, MODEL)


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64"]
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 40_000, 99_999])
def test_one_value_that_is_not_finite_is_found(dtype, value, place):
    tensor = torch.ones(100_000, dtype=getattr(torch, dtype))
    check_finite("w", tensor, what="update")
    tensor[place] = value
    if dtype == "float8_e4m3fn" and tensor[place].float().isfinite():
        return  # it has no infinities
    with pytest.raises(ModelError, match="`w` has NaN or infinite values"):
        check_finite("w", tensor, what="update")


def test_finite_values_whose_sum_is_not_finite_pass():
    check_finite("w", torch.full((1_000,), 3e38), what="update")
    check_finite("w", torch.empty(0), what="update")
    check_finite("w", torch.tensor([True, False]), what="update")


def test_state_dicts_and_checkpoints_are_read(tmp_path):
    state = torch.nn.Linear(3, 2).state_dict()
    torch.save(state, tmp_path / "m.pt")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": state, "epoch": 3, "hyper_parameters": {"lr": 0.1}}, tmp_path / "m.ckpt")
    save(tmp_path / "m.safetensors", state)
    for name in ("m.pt", "old.pth", "m.ckpt", "m.safetensors"):
        found = read_file(tmp_path / name)
        assert found.keys() == state.keys(), name
        assert all(torch.equal(found[key], tensor) for key, tensor in state.items()), name
        assert spec_of(found) == spec_of(state)
    assert read_hyper_parameters(tmp_path / "m.ckpt") == {"lr": 0.1}
    assert read_hyper_parameters(tmp_path / "m.safetensors") == {}


def test_hyper_parameters_given_as_one_argument_stay_one(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": {"lr": 0.1}, "hparams_name": "config"}, tmp_path / "m.ckpt")
    assert read_hyper_parameters(tmp_path / "m.ckpt") == {"config": {"lr": 0.1}}


class Opaque:
    """Something that a restricted reader must not build."""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.ckpt", {"state_dict": {}, "hyper_parameters": {"loss": Opaque()}}, "no code is unpickled"),
        ("m.pt", {"w": 3}, "not a state dict: `w` is no tensor"),
        ("m.pt", {"state_dict": [1]}, "its `state_dict` is no dictionary of tensors"),
        ("m.pt", [1, 2], "holds a list, no state dict"),
        ("m.bin", {}, "not a file of weights"),
    ],
)
def test_files_without_a_state_dict_are_refused(tmp_path, name, content, message):
    torch.save(content, tmp_path / name)
    with pytest.raises(ModelError, match=message) as error:
        read_file(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04" + bytes(100), pickle.dumps(Path, protocol=2)])
def test_files_that_torch_did_not_write_are_refused(tmp_path, content):
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.pt: not"):
        read_file(tmp_path / "m.pt")


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read_file(tmp_path / "m.pt")


def test_a_checkpoint_has_what_lightning_asks_for_and_no_more_bytes_than_its_tensors(tmp_path):
    save(tmp_path / "m.safetensors", {"a": torch.randn(1_000), "b": torch.randn(1_000, dtype=torch.float64)})
    weights = Weights.open(tmp_path / "m.safetensors")
    save_checkpoint(tmp_path / "m.ckpt", weights, {"lr": 0.1})
    content = torch.load(tmp_path / "m.ckpt", weights_only=True)
    assert content["pytorch-lightning_version"] == version("pytorch-lightning")
    assert content["hyper_parameters"] == {"lr": 0.1}
    assert all(torch.equal(content["state_dict"][name], tensor) for name, tensor in weights.items())
    assert (tmp_path / "m.ckpt").stat().st_size < 12_000 + 3_000
    assert names_in(tmp_path) == ["m.ckpt", "m.safetensors"]


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float8_e4m3fn", "complex64"])
def test_an_update_may_lie_only_so_far_from_the_model(dtype):
    model = {"w": torch.ones(40_000).to(getattr(torch, dtype)), "steps": torch.tensor(1)}
    update = {"w": torch.full((40_000,), 5.0).to(getattr(torch, dtype)), "steps": torch.tensor(10**9)}
    check_update(update, model, farthest=4.0)  # 4 x 200 from a model of norm 200
    with pytest.raises(ModelError, match=r"lies 800 from .*, whose norm is 200, further than .* tensor `w` moved most"):
        check_update(update, model, farthest=3.9)


@pytest.mark.parametrize(
    ("ours", "theirs", "is_far"), [(1e300, 1.0, True), (1e300, 1e300, False), (1.7e308, -1.7e308, False)]
)
def test_how_far_an_update_lies_is_told_where_squares_are_beyond_a_double(ours, theirs, is_far):
    update, model = ({"w": torch.full((3,), value, dtype=torch.float64)} for value in (ours, theirs))
    if is_far:
        with pytest.raises(ModelError, match=r"lies 1\.73e\+300 from the model, whose norm is 1\.73"):
            check_update(update, model, farthest=1000.0)
    else:
        check_update(update, model, farthest=1000.0)
