"""Tensors as a file that travels: what comes over, what is lost and goes with the next one, and what is refused."""

import json
import tracemalloc

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl.codecs.bf16 import BF16
from fedctl.codecs.pipeline import Pipeline, seed_of_model
from fedctl.codecs.trial import ratio
from fedctl.codecs.wire import PACKED, Outgoing, in_order, read
from fedctl.downlink import UNCHANGED, shorten
from fedctl.errors import ConfigError, ModelError
from fedctl.weights import Weights, controls_of, digest, save, spec_of

torch.set_num_threads(1)  # tensors here are small, and many tests share the machine
EXACT = ["", "delta", "zstd", "delta zstd"]
LOSSY = [
    "delta bf16",
    "fp16 zstd",
    "int8",
    "delta int8 zstd",
    "delta int4 zstd",
    "delta topk int8 zstd",
    "delta topk",
    "delta randk zstd",
    "delta powersgd bf16 zstd",
    "delta powersgd",
]
every_pipeline = pytest.mark.parametrize("words", EXACT + LOSSY)


def pipeline_of(words: str) -> Pipeline:
    options = {"topk": {"keep": 0.2, "whole": 0}, "randk": {"keep": 0.5, "whole": 0}, "powersgd": {"rank": 2}}
    return Pipeline.of([{"name": word, **options.get(word, {})} for word in words.split()])


def model(seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random)

    return {
        "conv.weight": normal(6, 3, 5, 5),
        "fc.weight": normal(10, 40),
        "fc.bias": normal(10),
        "one": normal(()),
        "half": normal(9).half(),
        "brain": normal(4, 4).bfloat16(),
        "double": normal(3, 7).double(),
        "complex": torch.complex(normal(3), normal(3)),
        "empty": torch.empty(0, 2),
        "bn.running_var": normal(4).abs(),
        "bn.num_batches_tracked": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
        "bytes": torch.arange(5, dtype=torch.uint8),
    }


def trained(base: dict[str, torch.Tensor], seed: int = 1, step: float = 0.01) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)

    def moved(tensor):
        if tensor.is_complex() or not tensor.is_floating_point():
            return tensor + 1 if tensor.dtype == torch.int64 else tensor
        return tensor + (step * torch.randn(tensor.shape, generator=random)).to(tensor.dtype)

    return {name: moved(tensor) for name, tensor in base.items()}


def came_over(outgoing: Outgoing, folder, **options) -> dict[str, torch.Tensor]:
    """What the other side reads, in a file of its own, as the coordinator has it."""
    spec = spec_of(outgoing.base)
    outgoing.save(folder / "wire.safetensors", spec)
    seed = options.pop("seed", outgoing.seed)
    came = read(folder / "wire.safetensors", outgoing.pipeline, spec, outgoing.base, seed=seed, **options)
    save(folder / "update.safetensors", came)
    return dict(Weights.open(folder / "update.safetensors"))


class TestWhatComesOver:
    @every_pipeline
    def test_names_shapes_and_dtypes_stay(self, words, tmp_path):
        base = model()
        came = came_over(Outgoing(pipeline=pipeline_of(words), tensors=trained(base), base=base, seed=3), tmp_path)
        assert spec_of(came) == spec_of(base)

    @pytest.mark.parametrize("words", EXACT)
    def test_what_loses_nothing_is_exact_to_the_bit(self, words, tmp_path):
        base = model()
        base["extreme"] = torch.tensor([0.0, -0.0, 1e-45, -1e38, 3e38, 1.0])
        update = trained(base)
        update["extreme"] = torch.tensor([-0.0, 1e-45, -3e38, 3e38, -1e-45, float("inf")])
        outgoing = Outgoing(pipeline=pipeline_of(words), tensors=update, base=base)
        came = came_over(outgoing, tmp_path)
        for name, tensor in update.items():
            assert torch.equal(came[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name
        assert not outgoing.lost

    @pytest.mark.parametrize("words", LOSSY)
    def test_what_is_lost_is_what_did_not_come(self, words, tmp_path):
        base = model()
        update, residual = trained(base), {"fc.weight": torch.full((10, 40), 0.003)}
        outgoing = Outgoing(pipeline=pipeline_of(words), tensors=update, base=base, residual=residual, seed=3)
        came = came_over(outgoing, tmp_path)
        lost = dict(outgoing.lost)
        assert "bn.running_var" not in lost
        assert "fc.weight" in lost
        for name, tensor in lost.items():
            wanted = update[name].double() + residual.get(name, torch.zeros(())).double()
            close = 2 * torch.finfo(tensor.dtype).eps * update[name].abs().max().double()
            assert (came[name].double() + tensor.double() - wanted).abs().max() <= close, name
        for name in update.keys() - lost.keys():
            assert torch.equal(came[name], update[name]), name

    @pytest.mark.parametrize("words", LOSSY)
    def test_what_was_lost_goes_with_the_next_ones(self, words, tmp_path):
        base = {"fc.weight": torch.zeros(20, 30)}
        step = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
        residual, total, pipeline = {}, torch.zeros(20, 30), pipeline_of(words)
        distances = []
        for number in range(1, 41):
            outgoing = Outgoing(
                pipeline=pipeline, tensors={"fc.weight": step}, base=base, residual=residual, seed=number
            )
            total += came_over(outgoing, tmp_path)["fc.weight"]
            residual = {name: tensor.clone() for name, tensor in outgoing.lost.items()}
            distances.append(float((total - number * step).norm() / step.norm()))
        assert max(distances[20:]) < 12
        assert max(distances[20:]) < 1.5 * max(distances[:20]) + 0.01  # it stays, and does not grow with the rounds

    @every_pipeline
    def test_the_same_seed_gives_the_same_bytes(self, words, tmp_path):
        base = model()
        made = []
        for _ in range(2):
            outgoing = Outgoing(pipeline=pipeline_of(words), tensors=trained(base), base=base, seed=3)
            made.append(outgoing.save(tmp_path / "wire.safetensors", spec_of(base)))
        assert made[0] == made[1]

    def test_the_seed_says_which_values_come(self, tmp_path):
        base = model()
        outgoing = Outgoing(pipeline=pipeline_of("delta randk zstd"), tensors=trained(base), base=base, seed=3)
        right = came_over(outgoing, tmp_path)
        wrong = came_over(outgoing, tmp_path, seed=4)
        assert not torch.equal(right["fc.weight"], wrong["fc.weight"])

    @every_pipeline
    def test_an_update_that_is_not_finite_comes_as_one(self, words, tmp_path):
        base = model()
        for bad in (float("nan"), float("inf"), float("-inf")):
            update = trained(base)
            update["fc.weight"][3, 4] = bad
            came = came_over(Outgoing(pipeline=pipeline_of(words), tensors=update, base=base, seed=3), tmp_path)
            if "randk" not in words:  # what is not drawn is not sent
                assert not came["fc.weight"].isfinite().all(), bad

    @pytest.mark.parametrize("words", ["", "delta zstd", "delta int8", "delta topk int8 zstd"])
    @pytest.mark.parametrize("has_some", [True, False])
    def test_controls_come_beside_the_weights(self, words, has_some, tmp_path):
        base = model()
        beside = controls_of(spec_of(base))
        controls = {"control/fc.bias": torch.randn(10)} if has_some else {}
        outgoing = Outgoing(pipeline=pipeline_of(words), tensors=trained(base) | controls, base=base, seed=3)
        outgoing.save(tmp_path / "wire.safetensors", spec_of(base), beside)
        spec = spec_of(base)
        came = read(tmp_path / "wire.safetensors", outgoing.pipeline, spec, base, seed=3, beside=beside)
        save(tmp_path / "update.safetensors", came)
        assert set(Weights.open(tmp_path / "update.safetensors")) == base.keys() | controls.keys()

    @every_pipeline
    @pytest.mark.parametrize("other", [torch.zeros(6), torch.zeros(2, 2), torch.zeros(4).half(), torch.zeros(4).int()])
    def test_a_tensor_that_is_not_the_models_is_refused_where_it_is(self, words, other, tmp_path):
        base = {"a": torch.zeros(4), "b": torch.zeros(6)}
        outgoing = Outgoing(pipeline=pipeline_of(words), tensors={**base, "a": other}, base=base)
        with pytest.raises(ModelError, match=r"tensor `a` is .*, the model has float32 \[4\]"):
            outgoing.save(tmp_path / "wire", spec_of(base))
        more = Outgoing(pipeline=pipeline_of(words), tensors={**base, "c": other}, base=base)
        with pytest.raises(ModelError, match=r"tensor `c` is .*, the model has none such"):
            more.save(tmp_path / "wire", spec_of(base))

    def test_fewer_bytes_come(self, tmp_path):
        base = {"fc.weight": torch.randn(300, 300, generator=torch.Generator().manual_seed(1))}
        raw = 4 * 300 * 300
        for words, at_least in [("delta zstd", 1.05), ("delta int8 zstd", 3.9), ("delta int4 zstd", 7.5)]:
            outgoing = Outgoing(pipeline=pipeline_of(words), tensors=trained(base, step=0.001), base=base, seed=1)
            assert raw / outgoing.save(tmp_path / "wire.safetensors", spec_of(base)).size >= at_least, words


class TestSmallChanges:
    @pytest.mark.parametrize("words", ["", "delta zstd", "delta int8 zstd", "int8"])
    def test_a_tensor_waits_until_it_has_changed_enough(self, words, tmp_path):
        base = {"a": torch.ones(100), "b": torch.ones(100), "bn.running_var": torch.ones(3), "n": torch.tensor(4)}
        update = {
            "a": base["a"] + 0.004,
            "b": base["b"] + 0.5,
            "bn.running_var": base["bn.running_var"] + 1e-4,
            "n": base["n"],
        }
        residual = {}
        for number in range(1, 4):
            outgoing = Outgoing(
                pipeline=pipeline_of(words), tensors=update, base=base, residual=residual, seed=number, least=0.01
            )
            came = came_over(outgoing, tmp_path, least=0.01)
            residual = {name: tensor.clone() for name, tensor in outgoing.lost.items()}
            waits = number < 3
            assert torch.equal(came["a"], base["a"]) is waits
            assert not torch.equal(came["b"], base["b"])
            assert torch.equal(came["bn.running_var"], update["bn.running_var"])
            assert torch.allclose(
                residual["a"],
                torch.full((100,), 0.004 * number if waits else 0.0),
                atol=2e-4 + 0.009 * ("int8" in words),
            )
        assert torch.allclose(came["a"], base["a"] + 0.012, atol=0.009)

    @every_pipeline
    def test_floats_of_a_byte_wait_as_others_do(self, words, tmp_path):
        values = torch.randn(300, generator=torch.Generator().manual_seed(0))
        base = {name: (factor * values).to(torch.float8_e4m3fn) for name, factor in (("a", 1.0), ("b", 0.5))}
        update = {"a": (2 * values).to(torch.float8_e4m3fn), "b": base["b"]}
        outgoing = Outgoing(pipeline=pipeline_of(words), tensors=update, base=base, least=0.01)
        came = came_over(outgoing, tmp_path, least=0.01)
        assert torch.equal(came["b"].float(), base["b"].float())
        lost = outgoing.lost["a"]
        assert torch.allclose(came["a"].float() + lost, update["a"].float(), atol=1e-5)

    def test_one_that_is_not_finite_does_not_wait(self, tmp_path):
        base = {"a": torch.ones(10)}
        update = {"a": torch.tensor([float("nan")] + [1.0] * 9)}
        outgoing = Outgoing(pipeline=Pipeline(), tensors=update, base=base, least=0.5)
        assert not came_over(outgoing, tmp_path, least=0.5)["a"].isfinite().all()


class TestWhatIsRefused:
    @pytest.fixture
    def wire(self, tmp_path):
        base = model()

        def wire(words):
            outgoing = Outgoing(pipeline=pipeline_of(words), tensors=trained(base), base=base, seed=3)
            outgoing.save(tmp_path / "wire.safetensors", spec_of(base))
            return tmp_path / "wire.safetensors"

        return wire

    @staticmethod
    def read_whole(path, words, spec=None):
        base = model()
        came = read(path, pipeline_of(words), spec or spec_of(base), base, seed=3, what="its update")
        save(path.with_name("update.safetensors"), came)

    @pytest.mark.parametrize("words", ["delta", "delta topk", "int8"])
    def test_parts_of_another_layout(self, words, wire):
        path = wire(words)
        tensors = dict(Weights.open(path))
        name = next(name for name in tensors if name.startswith("fc.weight"))
        for change in (
            {name: None},
            {name: tensors[name].reshape(-1)[:-1].clone()},
            {name: tensors[name].double()},
            {"fc.weight//9": torch.zeros(3)},
            {"another": torch.zeros(3)},
        ):
            changed = {key: one for key, one in {**tensors, **change}.items() if one is not None}
            save(path, changed)
            with pytest.raises(ModelError):
                self.read_whole(path, words)

    def test_parts_that_a_codec_of_ones_own_stumbles_on(self, tmp_path):
        class Stumbling(BF16):
            def decode(self, parts, spec, seed):
                raise IndexError("index 99 is out of bounds")

        base, wire = {"a": torch.zeros(4)}, tmp_path / "wire.safetensors"
        save(wire, {"a": torch.zeros(4).bfloat16()})
        came = read(wire, Pipeline(precision=Stumbling()), spec_of(base), base, seed=0, what="its update")
        with pytest.raises(ModelError, match=r"^its update: tensor `a` cannot be decoded: IndexError: index 99"):
            dict(came)

    def test_another_pipeline(self, wire):
        for sent in ("", "zstd", "delta int8 zstd", "delta topk"):
            path = wire(sent)
            for expected in ("delta", "delta int8", "delta int4 zstd", "delta powersgd"):
                with pytest.raises(ModelError, match="its update"):
                    self.read_whole(path, expected)

    @pytest.mark.parametrize("words", ["zstd", "delta topk int8 zstd"])
    def test_a_stream_that_ends_early_goes_on_or_is_damaged(self, words, wire):
        path = wire(words)
        packed = Weights.open(path)[PACKED].clone()
        longer = zstandard.ZstdDecompressor().decompressobj().decompress(packed.numpy().tobytes()) + b"more"
        damaged = packed.clone()
        damaged[len(damaged) // 2 :] ^= 0x55
        for bad in (packed[:-20].clone(), packed[:3].clone(), damaged, of_bytes(zstandard.compress(longer))):
            save(path, {PACKED: bad})
            with pytest.raises(ModelError, match="its update: the stream"):
                self.read_whole(path, words)

    def test_a_bomb_is_read_no_further_than_what_was_expected(self, tmp_path):
        base = {"a": torch.zeros(1000)}
        bomb = zstandard.ZstdCompressor(level=1).compress(b"\1" + bytes(1 << 28))
        save(tmp_path / "wire.safetensors", {PACKED: of_bytes(bomb)})
        tracemalloc.start()
        with pytest.raises(ModelError, match="goes on after its last tensor"):
            dict(read(tmp_path / "wire.safetensors", pipeline_of("zstd"), spec_of(base), base, seed=0))
        assert tracemalloc.get_traced_memory()[1] < 30 << 20
        tracemalloc.stop()

    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=300), st.sampled_from(["zstd", "delta topk int8 zstd", "delta powersgd zstd"]))
    def test_any_bytes_give_tensors_or_a_refusal(self, content, words):
        """Bytes in a sound stream, so that they come as far as the codecs."""
        import tempfile
        from pathlib import Path

        base = {"fc.weight": torch.ones(4, 5)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "wire.safetensors"
            for bad in (content, zstandard.compress(b"\1" + content)):
                save(path, {PACKED: of_bytes(bad)})
                try:
                    came = dict(read(path, pipeline_of(words), spec_of(base), base, seed=0))
                except ModelError:
                    continue
                assert spec_of(came) == spec_of(base)

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ("zstd delta", "delta should stand before zstd"),
            ("delta int8 topk", "topk should stand before int8"),
            ("int8 int4", "int8 and int4 do the same step"),
            ("topk zstd", "topk leaves out most of what it is given"),
        ],
    )
    def test_an_order_that_makes_no_sense(self, words, said):
        with pytest.raises(ConfigError, match=said) as error:
            pipeline_of(words)
        assert error.value.hint


class TestModels:
    @pytest.mark.parametrize("words", ["", "delta zstd", "delta bf16 zstd", "delta int8 zstd", "delta topk int4 zstd"])
    def test_what_nodes_make_of_a_difference_is_the_model_to_the_bit(self, words, tmp_path):
        pipeline = pipeline_of(words)
        weights = model()
        files = [tmp_path / f"model{number}.safetensors" for number in range(5)]
        save(files[0], weights)
        for number in range(1, 5):
            weights = trained(weights, seed=number)
            save(tmp_path / "made.safetensors", weights)
            shortened = shorten(
                tmp_path / "made.safetensors",
                pipeline=pipeline,
                seed=seed_of_model(digest(files[number - 1])),
                previous=files[number - 1],
                residual=tmp_path / f"residual{number - 1}.safetensors",
                model_out=files[number],
                difference_out=tmp_path / "difference.safetensors",
                residual_out=tmp_path / f"residual{number}.safetensors",
            )
            before = Weights.open(files[number - 1])
            seed = seed_of_model(digest(files[number - 1]))
            made = read(tmp_path / "difference.safetensors", pipeline, before.spec, before, seed=seed, least=1.0)
            assert save(tmp_path / "at-node.safetensors", made) == shortened.model == digest(files[number])
            assert shortened.difference == digest(tmp_path / "difference.safetensors")
        last = Weights.open(files[4])
        if not pipeline.is_lossy:
            assert all(torch.equal(last[name], weights[name]) for name in weights)
        elif "topk" not in words:
            assert torch.allclose(last["fc.weight"], weights["fc.weight"], atol=2e-3)
            assert not torch.equal(last["fc.weight"], weights["fc.weight"])

    def test_what_has_not_changed_does_not_travel(self, tmp_path):
        weights = {"frozen": torch.randn(1000), "head": torch.randn(3)}
        save(tmp_path / "before.safetensors", weights)
        save(tmp_path / "made.safetensors", weights | {"head": torch.zeros(3)})
        shorten(
            tmp_path / "made.safetensors",
            pipeline=Pipeline(),
            seed=0,
            previous=tmp_path / "before.safetensors",
            residual=tmp_path / "none",
            model_out=tmp_path / "after.safetensors",
            difference_out=tmp_path / "difference.safetensors",
            residual_out=tmp_path / "residual.safetensors",
        )
        assert set(Weights.open(tmp_path / "difference.safetensors")) == {"head"}
        assert torch.equal(Weights.open(tmp_path / "after.safetensors")["frozen"], weights["frozen"])
        assert 0 < UNCHANGED < 1e-300


def test_a_model_with_floats_of_a_byte_is_tried(tmp_path):
    save(tmp_path / "model", {"a": torch.ones(2000).to(torch.float8_e4m3fn), "b": torch.ones(2000)})
    assert 0.1 < ratio(tmp_path / "model", pipeline_of("delta zstd")) < 1.1


def test_files_are_read_in_the_order_in_which_they_are_written(tmp_path):
    spec = spec_of(model())
    blob = save(tmp_path / "file.safetensors", model())
    raw = (tmp_path / "file.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    header.pop("__metadata__")
    assert blob.size == len(raw)
    assert sorted(
        header, key=lambda name: header[name]["data_offsets"][0] + 1e-9 * in_order(spec).index(name)
    ) == in_order(spec)


def of_bytes(content: bytes) -> torch.Tensor:
    return torch.tensor(list(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
