"""Every codec of tensors in the table: what its parts are, how far it is off, and that no parts do harm.

A codec that is added to the table is tested here by that alone, with its default options; one of the step `precision`
states in `ERRORS` how far off a value may be.
"""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl.codecs import CODECS, build, kind_of
from fedctl.codecs.levels import LEAST, RUN, channel
from fedctl.codecs.randk import _places
from fedctl.errors import ConfigError, ModelError
from fedctl.header import TensorSpec

STEPS = {name: kind_of(name).step for name in CODECS}
TENSOR = [name for name, step in STEPS.items() if step in {"selection", "precision"}]
PRECISION = [name for name in TENSOR if STEPS[name] == "precision"]
DRAWING = {"int8", "int4", "randk", "powersgd"}
"""Those whose parts depend on the seed."""
SHAPES = [(), (1,), (7,), (1, 9), (2, 2), (3, 5), (30, 1), (40, 3, 3), (9, 40, 5), (2, RUN + 3), (RUN + 5,), (700, 100)]
LARGEST, TINIEST = 2.0**126, 1e-28

every_codec = pytest.mark.parametrize("name", TENSOR)
every_precision = pytest.mark.parametrize("name", PRECISION)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def spec_of(tensor):
    return TensorSpec(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def values_of(shape, *, dtype=torch.float32, seed=3):
    """With tails as heavy as those of an update."""
    generator = torch.Generator().manual_seed(seed)
    normal, width = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    return normal * width.exp() * 1e-4


def there_and_back(codec, values, seed=5):
    return codec.decode(codec.encode(values, seed), spec_of(values), seed)


def same(some, others):
    """To the bit, NaN too."""
    return all(spec_of(a) == spec_of(b) and torch.equal(bits(a), bits(b)) for a, b in zip(some, others, strict=True))


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8)


def steps(values, most):
    """The step of each value's channel, by a way of its own."""
    flat = values.reshape(-1).double().abs()
    largest = torch.cat([part.max().expand(len(part)) for part in flat.split(channel(spec_of(values)))])
    return largest.view(values.shape) / most


ERRORS = {
    "bf16": lambda values: values.double().abs() * 2.0**-8 + 1e-40,
    "fp16": lambda values: torch.maximum(values.double().abs() * 2.0**-11, values.double().abs().max() * 2.0**-39),
    "int8": lambda values: steps(values, 127) * (1 + 1e-4) + TINIEST,
    "int4": lambda values: steps(values, 7) * (1 + 1e-4) + TINIEST,
}


# What the parts are


@every_codec
@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_parts_are_as_the_layout_says_and_values_come_back_as_they_were(name, shape, dtype):
    codec, values = build({"name": name}), values_of(shape, dtype=dtype)
    layout = codec.layout(spec_of(values))
    parts = codec.encode(values, 5)
    assert tuple(spec_of(part) for part in parts) == layout
    back = codec.decode(parts, spec_of(values), 5)
    assert spec_of(back) == spec_of(values)
    assert back.isfinite().all()
    carried = layout[: codec.carried] if codec.step == "selection" else ()
    assert all(part.dtype == spec_of(values).dtype for part in carried)


@every_codec
def test_values_are_left_alone_and_their_order_in_memory_does_not_matter(name):
    codec, values = build({"name": name}), values_of((60, 50)).t()
    before = values.clone()
    parts = codec.encode(values, 5)
    assert same(parts, codec.encode(values.contiguous(), 5))
    assert all(part.is_contiguous() for part in parts)
    assert same([values], [before])


@every_codec
def test_the_same_seed_gives_the_same_bits_and_another_one_others_where_chance_has_a_part(name):
    codec, values = build({"name": name}), values_of((60, 50))
    parts = codec.encode(values, 5)
    assert same(parts, codec.encode(values, 5))
    assert same(parts, codec.encode(values, 6)) == (name not in DRAWING)


@every_codec
def test_a_codec_says_whether_every_machine_decodes_the_same_bits(name):
    assert kind_of(name).exact_everywhere == (name != "powersgd")


# How far off they are


@every_precision
@every_shape
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_no_value_is_further_off_than_stated(name, shape, scale):
    values = values_of(shape, dtype=torch.float64).mul(scale).float()
    error = there_and_back(build({"name": name}), values).double() - values.double()
    assert (error.abs() <= ERRORS[name](values)).all()


@every_precision
@settings(max_examples=150, deadline=None)
@given(
    numbers=st.lists(st.floats(-LARGEST, LARGEST, width=32), min_size=1, max_size=20),
    copies=st.integers(1, 200),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_whatever_the_numbers_no_value_is_further_off_than_stated(name, numbers, copies, dtype):
    values = torch.tensor(numbers, dtype=dtype).repeat(copies, 1)
    back = there_and_back(build({"name": name}), values)
    assert back.isfinite().all()
    assert ((back.double() - values.double()).abs() <= ERRORS[name](values)).all()


@every_codec
@every_shape
def test_what_is_left_out_is_no_more_than_what_was_there(name, shape):
    values = values_of(shape)
    if STEPS[name] == "selection":
        error = there_and_back(build({"name": name}), values) - values
        assert error.norm() <= values.norm() * (1 + 1e-5)
    assert not there_and_back(build({"name": name}), torch.zeros(shape)).any()


@pytest.mark.parametrize(("name", "most"), [("int8", 127), ("int4", 7)])
def test_the_mean_over_many_seeds_is_right(name, most):
    codec, values, seeds = build({"name": name}), values_of((20, LEAST)), 400
    error = sum(there_and_back(codec, values, seed).double() - values for seed in range(seeds)) / seeds
    step = steps(values, most)
    assert (error.abs() <= 6 * 0.5 / seeds**0.5 * step).all()
    assert abs(float((error / step).mean())) <= 5 * 0.5 / (seeds * values.numel()) ** 0.5


@pytest.mark.parametrize(("name", "most"), [("int8", 127), ("int4", 7)])
def test_rounding_to_the_nearest_is_off_by_half_a_step(name, most):
    values = values_of((20, LEAST))
    error = there_and_back(build({"name": name, "rounding": "nearest"}), values) - values
    assert (error.abs() <= steps(values, most) * (0.5 + 1e-4)).all()


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_no_level_is_above_the_last_however_the_largest_values_are_rounded(name):
    values = values_of((8000, 1)).expand(-1, LEAST)
    back = there_and_back(build({"name": name}), values)
    assert torch.equal(back.sign(), values.sign())


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_levels_times_scales_is_one_multiplication_each(name):
    codec, values = build({"name": name}), values_of((3, LEAST))
    packed, scales = codec.encode(values, 5)
    nibbles = torch.stack([packed & 15, packed >> 4], dim=-1).reshape(-1).to(torch.int8) - 8
    levels = (packed if name == "int8" else nibbles).view(values.shape)
    assert same([codec.decode((packed, scales), spec_of(values), 5)], [levels.float() * scales.view(3, 1)])


@every_precision
def test_the_largest_float_comes_back_finite_where_it_has_a_scale(name):
    values = torch.tensor([torch.finfo(torch.float32).max, -1.0])
    back = there_and_back(build({"name": name}), values)
    assert back.isfinite().all() == (name in {"int8", "int4"})


def test_rows_that_are_short_share_a_scale():
    shapes = [(), (9,), (1000,), (10, 1000), (300, 3, 3, 3), (4, 2), (1, 512)]
    assert [channel(TensorSpec("float32", shape)) for shape in shapes] == [1, 9, 1000, 1000, 270, 8, 512]


# Those that leave values out


@pytest.mark.parametrize("keep", [1e-6, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 10, 1000, 300_000])
def test_topk_keeps_the_largest_and_loses_no_more_than_their_share(keep, count):
    codec, values = build({"name": "topk", "keep": keep, "whole": 0}), values_of((count,))
    back = there_and_back(codec, values)
    found = values.abs().topk(max(1, math.ceil(keep * count)))
    assert torch.equal(back.nonzero().flatten(), found.indices.sort().values)
    assert torch.equal(back[found.indices], values[found.indices])
    assert (back - values).double().square().sum() <= (1 - keep + 1e-9) * values.double().square().sum()


@pytest.mark.parametrize("period", [1, 2, 3, 4, 5, 1000])
@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_topk_is_not_misled_by_values_that_come_in_a_rhythm(period, factor):
    values = values_of((300_000,))
    values[::period] *= factor
    back = there_and_back(build({"name": "topk", "keep": 0.1, "whole": 0}), values)
    assert len(back.nonzero()) == 30_000
    assert torch.equal(back.abs().topk(30_000).values, values.abs().topk(30_000).values)


def test_topk_takes_the_first_of_equal_ones():
    values = torch.tensor([0.0, -1.0, 1.0, 2.0, 1.0, -1.0])
    assert there_and_back(build({"name": "topk", "keep": 0.5, "whole": 0}), values).tolist() == [0, -1, 1, 2, 0, 0]


def test_topk_tells_of_very_large_tensors_too():
    layout = build({"name": "topk", "keep": 1e-9, "whole": 0}).layout
    assert [layout(TensorSpec("float32", (count,)))[1] for count in (2**31 - 1, 2**31)] == [
        TensorSpec("int32", (3,)),
        TensorSpec("int64", (3,)),
    ]


@pytest.mark.parametrize(("count", "chosen"), [(1, 1), (10, 3), (10, 6), (10, 10), (1000, 999)])
def test_randk_draws_different_places_each_as_likely_as_any_other(count, chosen):
    seeds = 2000
    drawn = torch.stack([_places(count, chosen, seed) for seed in range(seeds)])
    assert all(len(set(row.tolist())) == chosen for row in drawn[:100])
    often = torch.bincount(drawn.flatten(), minlength=count) / seeds
    share = chosen / count
    assert len(often) == count
    assert ((often - share).abs() <= 5 * (share * (1 - share) / seeds) ** 0.5).all()


def test_randk_draws_the_same_places_with_every_numpy():
    assert _places(1_000_000, 6, 7).tolist() == [211911, 462183, 618692, 724651, 966989, 48893]


def test_randk_brings_over_what_it_chose_as_it_was():
    values = values_of((1000,))
    back = there_and_back(build({"name": "randk", "keep": 0.3, "whole": 0}), values)
    assert len(back.nonzero()) == 300
    assert torch.equal(back[back != 0], values[back != 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1e-24, 1.0, 1e25])
def test_powersgd_is_exact_for_a_matrix_of_its_rank(dtype, size):
    left, right = values_of((120, 3), dtype=dtype), values_of((3, 90), dtype=dtype, seed=4)
    values = (left @ right).view(120, 9, 10) / 1e-8 * size
    error = there_and_back(build({"name": "powersgd", "rank": 3}), values) - values
    assert error.norm() <= 100 * torch.finfo(dtype).eps * values.norm()


def test_powersgd_comes_near_the_best_of_its_rank():
    values = values_of((80, 80)) @ torch.diag(0.8 ** torch.arange(80))
    error = there_and_back(build({"name": "powersgd", "rank": 8}), values) - values
    best = torch.linalg.svdvals(values)[8:].norm()
    assert best <= error.norm() <= 1.2 * best


def test_powersgd_leaves_alone_what_two_factors_would_not_make_smaller():
    values = values_of((8, 8))
    assert same(build({"name": "powersgd"}).encode(values, 5), [values])
    assert len(build({"name": "powersgd", "rank": 3}).encode(values, 5)) == 2


# What may come from anybody


@every_codec
@every_shape
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_does_not_come_out_finite(name, shape, bad):
    values = values_of(shape)
    values.view(-1)[values.numel() // 2] = bad
    assert not there_and_back(build({"name": name}), values).isfinite().all()


@every_codec
@settings(max_examples=60, deadline=None)
@given(shape=st.sampled_from([shape for shape in SHAPES if math.prod(shape) < 1000]), seed=st.integers(0, 10**6))
def test_whatever_the_parts_hold_they_become_values_or_are_refused(name, shape, seed):
    codec, spec = build({"name": name}), TensorSpec("float32", shape)
    generator = torch.Generator().manual_seed(seed)
    parts = [
        torch.randint(0, 256, (part.size,), dtype=torch.uint8, generator=generator)
        .view(getattr(torch, part.dtype))
        .view(part.shape)
        for part in codec.layout(spec)
    ]
    try:
        values = codec.decode(parts, spec, seed)
    except ModelError:
        return
    assert spec_of(values) == spec


@every_precision
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_part_that_is_not_finite_is_seen_in_the_values(name, bad):
    codec, values = build({"name": name}), values_of((4, 100))
    parts = [part.clone() for part in codec.encode(values, 5)]
    parts[-1].view(-1)[0] = bad
    assert not codec.decode(parts, spec_of(values), 5).isfinite().all()


@pytest.mark.parametrize(
    "gaps",
    [
        [-1, 2, 2],
        [0, -1, 2],
        [0, 0, 1],
        [30, 1, 1],
        [10, 10, 10],
        [0, 2**31 - 1, 2**31 - 1],
        [2**31 - 1, 1, 1],
        [-(2**31), 1, 1],
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_topk_refuses_places_that_are_not_in_the_tensor(gaps, dtype):
    codec = build({"name": "topk", "keep": 0.1, "whole": 0})
    with pytest.raises(ModelError, match="topk: a value has no place in its tensor"):
        codec.decode((torch.ones(3), torch.tensor(gaps, dtype=dtype)), TensorSpec("float32", (6, 5)), 5)


# Names and options


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"name": "topk", "keep": 0.0, "whole": 0}, "keep should be above 0 and at most 1, not 0.0"),
        ({"name": "topk", "keep": 1.5, "whole": 0}, "keep should be above 0 and at most 1, not 1.5"),
        ({"name": "randk", "keep": -0.1, "whole": 0}, "keep should be above 0 and at most 1, not -0.1"),
        ({"name": "powersgd", "rank": 0}, "rank should be at least 1, not 0"),
        ({"name": "int8", "rounding": "up"}, "rounding should be stochastic or nearest, not up"),
        ({"name": "int4", "rounding": ""}, "rounding should be stochastic or nearest, not "),
    ],
    ids=str,
)
def test_an_option_out_of_its_range_is_refused(stage, message):
    with pytest.raises(ValueError) as error:
        build(stage)
    assert str(error.value) == message


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="codec: there is none called 'int88'") as error:
        build({"name": "int88"})
    assert error.value.hint == "did you mean `int8`?"


def test_names_and_options_are_checked_without_torch():
    code = (
        "import sys\nfrom fedctl.codecs import CODECS, build\n"
        "for name in CODECS: build({'name': name})\n"
        "assert not {'torch', 'numpy', 'zstandard'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
