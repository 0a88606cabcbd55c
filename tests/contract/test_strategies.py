"""Every strategy of the table: same names, shapes and dtypes, finite, and the same bits in whatever order updates come.

A strategy that is added to the table is tested here by that alone, with its default options.
"""

import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedctl.errors import ConfigError, ModelError
from fedctl.federation import Named
from fedctl.soundness import check_update
from fedctl.strategies import STRATEGIES, Contribution, Outcome, Strategy, build, least_of, resolve
from fedctl.weights import Weights, save, spec_of

FLOATING = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64")
INTEGER = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")
IDENTITY = ("fedavg", "scaffold", "median", "geometric-median", "norm-clip")
"""Those of which the outcome of one update is that update, to the bit."""
CHOOSING = ("krum", "multi-krum", "bulyan")
"""Those that leave whole updates out."""
SEVEN = (1, 2, 3, 4, 5, 6, 7)
"""As many as every rule needs to bear the hostile node of its default options."""

every_strategy = pytest.mark.parametrize("name", STRATEGIES)


def model_like(seed: int) -> dict[str, torch.Tensor]:
    """Tensors of every kind that a state dict may hold."""
    generator = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tied = values(3, 3).float()
    return {
        **{dtype: values(4, 5).to(getattr(torch, dtype)) for dtype in FLOATING},
        **{dtype: (values(4, 5).abs() * 2).to(getattr(torch, dtype)) for dtype in INTEGER},
        "scalar": values().float(),
        "nothing": torch.empty(0, 3),
        "transposed": values(5, 2).float().t(),
        "many": values(70_001).float(),
        "encoder.weight": tied,
        "decoder.weight": tied,
        "bn.running_var": values(6).float().abs(),
        "bn.num_batches_tracked": torch.tensor(int(values().abs() * 100)),
    }


def controls_like(seed: int) -> dict[str, torch.Tensor]:
    """Of every floating tensor that is no buffer."""
    found = model_like(seed + 1_000)
    return {name: tensor for name, tensor in found.items() if name not in INTEGER and not name.startswith("bn.")}


def contributions(*seeds: int) -> list[Contribution]:
    return [
        Contribution(
            name=f"node-{seed}",
            weight=10.0 + 7 * seed,
            weights=model_like(seed),
            steps=1 + seed,
            loss=seed / 2,
            controls=controls_like(seed),
        )
        for seed in seeds
    ]


def run(strategy: Strategy, updates: list[Contribution], memory: Mapping[str, torch.Tensor] | None = None) -> Outcome:
    outcome = strategy.aggregate(model_like(0), updates, memory or {})
    return Outcome(model=dict(outcome.model), memory=dict(outcome.memory))


def assert_same_bits(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert spec_of(one) == spec_of(other)
    for name, tensor in one.items():
        as_bytes = [t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, other[name])]
        assert torch.equal(*as_bytes), name


@every_strategy
def test_names_shapes_and_dtypes_stay_and_values_are_finite(name, tmp_path):
    outcome = build(Named(name=name)).aggregate(model_like(0), contributions(*SEVEN), {})
    check_update(outcome.model, model_like(0))
    save(tmp_path / "model.safetensors", outcome.model)
    save(tmp_path / "memory.safetensors", outcome.memory)


@every_strategy
@given(order=st.permutations(SEVEN))
@settings(max_examples=5, deadline=None)
def test_the_order_of_updates_changes_no_bit(name, order):
    strategy = build(Named(name=name))
    expected, found = run(strategy, contributions(*SEVEN)), run(strategy, contributions(*order))
    assert_same_bits(found.model, expected.model)
    assert_same_bits(found.memory, expected.memory)


@every_strategy
def test_the_same_inputs_give_the_same_bits_whatever_the_number_of_threads(name):
    strategy, threads = build(Named(name=name)), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        expected = run(strategy, contributions(*SEVEN))
        torch.set_num_threads(1)
        found = run(strategy, contributions(*SEVEN))
        assert_same_bits(found.model, expected.model)
        assert_same_bits(found.memory, expected.memory)
    finally:
        torch.set_num_threads(threads)


@every_strategy
def test_inputs_are_left_as_they_are(name):
    strategy, updates, start = build(Named(name=name)), contributions(*SEVEN), model_like(0)
    first = strategy.aggregate(start, updates, {})
    memory = dict(first.memory)
    second = strategy.aggregate(dict(first.model), updates, memory)
    assert dict(second.model).keys() == start.keys()
    assert_same_bits(start, model_like(0))
    assert_same_bits(updates[0].weights, model_like(1))
    assert_same_bits(updates[0].controls, controls_like(1))
    assert_same_bits(memory, dict(first.memory))


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in CHOOSING])
def test_integers_and_booleans_take_the_largest(name):
    model = run(build(Named(name=name)), contributions(*SEVEN)).model
    for key in (*INTEGER, "bn.num_batches_tracked"):
        expected = torch.stack([model_like(seed)[key].to(torch.int64) for seed in SEVEN]).amax(0)
        assert torch.equal(model[key].to(torch.int64), expected), key


@every_strategy
def test_tied_tensors_stay_equal(name):
    model = run(build(Named(name=name)), contributions(*SEVEN)).model
    assert torch.equal(model["encoder.weight"], model["decoder.weight"])


@every_strategy
def test_nodes_without_examples_count_alike(name):
    without = [replace(update, weight=0) for update in contributions(*SEVEN)]
    alike = [replace(update, weight=5) for update in without]
    assert_same_bits(run(build(Named(name=name)), without).model, run(build(Named(name=name)), alike).model)


@every_strategy
def test_updates_that_equal_the_model_leave_it(name):
    start = {key: tensor for key, tensor in model_like(0).items() if key != "float64"}
    updates = [replace(update, weights=start) for update in contributions(*SEVEN)]
    assert_same_bits(dict(build(Named(name=name)).aggregate(start, updates, {}).model), start)


@pytest.mark.parametrize("name", IDENTITY)
@given(weight=st.floats(0, 1e12), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_one_update_is_the_outcome_to_the_bit(name, weight, seed):
    alone = Contribution(name="alice", weight=weight, weights=model_like(seed), controls=controls_like(seed))
    assert_same_bits(run(build(Named(name=name)), [alone]).model, model_like(seed))


def one(value: float, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([value], dtype=dtype)}


def outcome_of(name: str, *values: float, dtype: torch.dtype = torch.float32, weights: tuple[float, ...] = ()) -> float:
    updates = [
        Contribution(name=f"n{n}", weight=weights[n] if weights else 1, weights=one(value, dtype))
        for n, value in enumerate(values)
    ]
    return build(Named(name=name)).aggregate(one(0, dtype), updates, {}).model["w"].item()


def test_fedavg_weighs_by_examples():
    assert outcome_of("fedavg", 1.0, 5.0, weights=(30, 10)) == 2.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_mean_of_the_largest_values_is_finite(dtype):
    assert outcome_of("fedavg", *[torch.finfo(dtype).max] * 3, dtype=dtype, weights=(1e9, 1, 7)) < float("inf")


def test_a_thousand_narrow_values_are_not_lost_in_the_sum():
    assert outcome_of("fedavg", *[1.0] * 1_000, dtype=torch.bfloat16) == 1.0


def test_median_of_an_odd_and_an_even_number_and_with_an_outlier():
    assert outcome_of("median", 3.0, 1.0, 2.0) == 2.0
    assert outcome_of("median", 4.0, 1.0, 2.0, 3.0) == 2.5
    assert outcome_of("median", 1.0, 2.0, 3e38) == 2.0
    assert outcome_of("median", 3e38, 3e38) == torch.tensor(3e38).item()


def test_median_of_more_updates_than_fit_in_a_chunk():
    updates = [
        Contribution(name=f"{n:04d}", weight=1, weights={"w": torch.full((3_000,), float(n))}) for n in range(1_001)
    ]
    assert torch.equal(build(Named(name="median")).aggregate({}, updates, {}).model["w"], torch.full((3_000,), 500.0))


def test_momentum_follows_the_paper_over_rounds():
    strategy = build(Named(name="fedavgm", options={"momentum": 0.9, "lr": 0.5}))
    model, memory, x, v = one(1.0), {}, 1.0, 0.0
    for mean in (0.5, 0.25, 2.0):
        outcome = strategy.aggregate(model, [Contribution(name="a", weight=3, weights=one(mean))], memory)
        model, memory = dict(outcome.model), dict(outcome.memory)
        v = 0.9 * v + (x - mean)
        x = x - 0.5 * v
        assert model["w"].item() == pytest.approx(x, rel=1e-6)
        assert memory["w/momentum_buffer"].item() == pytest.approx(v, rel=1e-6)


def test_momentum_of_zero_is_fedavg():
    updates = contributions(1, 2, 3)
    without = run(build(Named(name="fedavgm", options={"momentum": 0})), updates).model
    for name, tensor in run(build(Named(name="fedavg")), updates).model.items():
        assert torch.allclose(without[name].to(torch.complex128), tensor.to(torch.complex128), rtol=1e-6), name


def test_momentum_leaves_statistics_to_the_mean():
    strategy = build(Named(name="fedavgm", options={"momentum": 0.9}))
    model, memory = {"bn.running_var": torch.ones(1)}, {}
    for variance in (0.1, 0.05):
        update = Contribution(name="a", weight=1, weights={"bn.running_var": torch.tensor([variance])})
        outcome = strategy.aggregate(model, [update], memory)
        model, memory = dict(outcome.model), dict(outcome.memory)
        assert model["bn.running_var"].item() == pytest.approx(variance)
    assert memory == {}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(
            (name, {})
            for name in ("fedavgm", "diloco", "fedadam", "fedyogi", "fedadagrad", "fednova", "qfedavg", "feddyn")
        ),
        ("norm-clip", {}),
        ("scaffold", {"lr": 0.5}),
    ],
)
def test_what_moves_the_model_needs_it(name, options):
    with pytest.raises(ModelError, match=f"{name} .* none was given") as error:
        build(Named(name=name, options=options)).aggregate({}, contributions(1), {})
    assert "--model" in error.value.hint


def test_fednova_needs_the_steps_and_qfedavg_the_losses():
    updates = [replace(update, steps=0, loss=None) for update in contributions(1, 2)]
    with pytest.raises(ModelError, match="steps behind each update, and has none of node-1"):
        run(build(Named(name="fednova")), updates)
    with pytest.raises(ModelError, match="loss of each node before it trains, a finite number from 0, and has none of"):
        run(build(Named(name="qfedavg")), updates)


@pytest.mark.parametrize(("loss", "shown"), [(math.nan, "nan"), (math.inf, "inf"), (-1.0, "-1")])
def test_qfedavg_names_the_node_whose_loss_is_none(loss, shown):
    good, bad = contributions(1, 2)
    with pytest.raises(ModelError) as error:
        run(build(Named(name="qfedavg")), [good, replace(bad, loss=loss)])
    assert str(error.value) == (
        f"qfedavg needs the loss of each node before it trains, a finite number from 0, and has {shown} of {bad.name}"
    )
    assert f"look at the data of {bad.name}, or take it out of fed.yaml" in error.value.hint


@pytest.mark.parametrize("q", [1.0, 40.0])
@pytest.mark.parametrize("loss", [1e12, 1e300, 1.7e308])
def test_qfedavg_computes_with_a_huge_loss(q, loss):
    """Against it the others are nothing: the outcome is the update of that node."""
    updates = [
        Contribution(name=name, weight=1, weights=one(end), loss=before)
        for name, end, before in (("small", 1.0, 1e-3), ("huge", 5.0, loss))
    ]
    found = build(Named(name="qfedavg", options={"q": q})).aggregate(one(0.0), updates, {})
    assert found.model["w"].item() == pytest.approx(5.0)


def test_qfedavg_names_the_node_whose_update_lies_too_far_off():
    ends = {"near": 1.0, "far": 1e200}
    updates = [
        Contribution(name=name, weight=1, weights={"w": torch.tensor([end], dtype=torch.float64)}, loss=1.0)
        for name, end in ends.items()
    ]
    with pytest.raises(ModelError, match=r"qfedavg cannot compute with the update of far, which lies 1e\+200") as error:
        build(Named(name="qfedavg")).aggregate({"w": torch.zeros(1, dtype=torch.float64)}, updates, {})
    assert "limits: {norm: 1000}" in error.value.hint


@pytest.mark.parametrize(
    ("name", "least"),
    [("median", 5), ("trimmed-mean", 5), ("geometric-median", 5), ("krum", 7), ("multi-krum", 7), ("bulyan", 11)],
)
def test_a_robust_rule_refuses_fewer_updates_than_it_needs(name, least):
    strategy = build(Named(name=name, options={"hostile": 2}))
    assert least_of(strategy) == least
    with pytest.raises(ModelError, match=f"{name} needs {least} updates to bear 2 hostile nodes, and there are"):
        run(strategy, contributions(*range(least - 1)))
    run(strategy, contributions(*range(least)))


def test_how_few_updates_will_do():
    assert {name: least_of(build(Named(name=name))) for name in STRATEGIES if name not in CHOOSING} == {
        name: 3 if name == "trimmed-mean" else 1 for name in STRATEGIES if name not in CHOOSING
    }
    assert least_of(build(Named(name="multi-krum", options={"hostile": 1, "keep": 8}))) == 9
    assert least_of(build(Named(name="norm-clip", options={"rule": {"name": "bulyan", "hostile": 1}}))) == 7


@pytest.mark.parametrize("name", ["fedavgm", "diloco", "fedadam", "fedyogi", "fedadagrad", "scaffold", "feddyn"])
def test_an_optimizer_takes_its_memory_up_from_disk(name, tmp_path):
    """Rounds in a row, and the same rounds with the memory written and read in between, end in the same bits."""
    strategy, models = build(Named(name=name)), []
    for kept in (False, True):
        model, memory = model_like(0), {}
        for _ in range(3):
            outcome = strategy.aggregate(model, contributions(1, 2), memory)
            model, memory = dict(outcome.model), dict(outcome.memory)
            if kept:
                save(tmp_path / "memory.safetensors", memory)
                memory = Weights.open(tmp_path / "memory.safetensors")
        models.append(model)
    assert_same_bits(*models)


def test_norm_clip_hands_on_what_lies_near_as_it_is():
    updates = [Contribution(name=f"n{n}", weight=1, weights=one(value)) for n, value in enumerate((1.0, -2.0, 30.0))]
    clipped = build(Named(name="norm-clip", options={"rule": "median"})).aggregate(one(0), updates, {}).model
    assert clipped["w"].item() == 1.0
    mean = build(Named(name="norm-clip", options={"norm": 3})).aggregate(one(0), updates, {}).model
    assert mean["w"].item() == pytest.approx(2 / 3)


def test_norm_clip_of_krum_is_one_update_clipped():
    strategy = build(Named(name="norm-clip", options={"rule": {"name": "krum", "hostile": 1}}))
    found = run(strategy, contributions(*SEVEN)).model
    assert spec_of(found) == spec_of(model_like(0))


@pytest.mark.parametrize(
    ("name", "options", "message", "hint"),
    [
        ("fedavgg", {}, "strategy: there is none called 'fedavgg'", "did you mean `fedavg`?"),
        ("zzz", {}, "strategy: there is none called 'zzz'", "the strategies are fedavg, fedavgm, fedadam"),
        ("fedavgm", {"momentun": 0.9}, "strategy/momentun: unknown option", "did you mean `momentum`?"),
        ("fedavgm", {"zzz": 0.9}, "strategy/zzz: unknown option", "its options are momentum, lr, buffers"),
        ("fedavg", {"lr": 0.9}, "strategy/lr: unknown option", "it has no options"),
        ("fedavgm", {"lr": True}, "strategy/lr: should be a number, not true", None),
        ("fedavgm", {"lr": "1"}, "strategy/lr: should be a number, not '1'", None),
        ("fedavgm", {"lr": float("inf")}, "strategy/lr: should be a number, not inf", None),
        ("fedavgm", {"lr": None}, "strategy/lr: should be a number, not nothing", None),
        ("fedavgm", {"lr": 0}, "strategy/lr: should be above 0, not 0.0", None),
        ("fedavgm", {"momentum": 1}, "strategy/momentum: should be at least 0 and below 1, not 1.0", None),
        ("krum", {"hostile": -1}, "strategy/hostile: should be at least 0, not -1", None),
        (
            "norm-clip",
            {"rule": 3},
            "strategy/rule: should be a name, or a mapping with a name and options, not 3",
            None,
        ),
        (
            "norm-clip",
            {"rule": "scaffold"},
            "strategy/rule: should be one that asks nothing of the nodes' training, not scaffold",
            None,
        ),
        ("norm-clip", {"rule": "feddyn"}, "nothing of the nodes' training, not feddyn", None),
        ("scaffold", {"option": 3}, "strategy/option: should be 1 or 2, not 3", None),
        ("scaffold", {"lr": 0}, "strategy/lr: should be above 0, not 0.0", None),
        ("scaffold", {"nodes": 0}, "strategy/nodes: should be above 0, not 0", None),
        ("feddyn", {"alpha": 0}, "strategy/alpha: should be above 0, not 0.0", None),
        ("feddyn", {"nodes": -3}, "strategy/nodes: should be above 0, not -3", None),
        ("norm-clip", {"rule": "fedavgg"}, "strategy: there is none called 'fedavgg'", "did you mean `fedavg`?"),
        ("norm-clip", {"rule": {"name": "krum", "hostil": 1}}, "hostil: unknown option", "did you mean `hostile`?"),
        ("fednova", {"momentum": 0.9, "proximal": 0.1}, "strategy/proximal: should be 0 with momentum", None),
        ("fedavgm", {"buffers": "*var"}, "strategy/buffers: should be a list, each a text, not '*var'", None),
        ("fedavgm", {"buffers": [3]}, "strategy/buffers: should be a text, not 3", None),
        ("no_such_package.mine:Mine", {}, "cannot be imported: No module named 'no_such_package'", None),
        ("fedctl.errors:Nothing", {}, "cannot be imported", None),
        ("fedctl.errors:ModelError", {}, "strategy: ModelError is no dataclass", None),
        ("fedctl.records:Blob", {}, "strategy/digest: is missing", "give a text"),
        ("fedctl.events:Traffic", {}, "fedctl.events:Traffic lacks `aggregate` or `weighted`", None),
        ("a:b:c", {}, "there is none called", None),
        ("../mine:Mine", {}, "there is none called", None),
    ],
)
def test_what_is_wrong_with_a_strategy_is_said(name, options, message, hint):
    with pytest.raises(ConfigError) as error:
        build(Named(name=name, options=options))
    assert message in str(error.value)
    assert hint is None or hint in (error.value.hint or "")


def test_options_take_whole_numbers_and_lists():
    built = build(Named(name="fedavgm", options={"lr": 2, "buffers": ["*var"]}))
    assert repr(built) == "Momentum(momentum=0.5, lr=2.0, buffers=('*var',))"


MINE = """
from dataclasses import dataclass
from typing import ClassVar
from fedctl.strategies import Outcome

@dataclass(frozen=True)
class First:
    weighted: ClassVar[bool] = False
    def aggregate(self, model, updates, memory):
        return Outcome(model=updates[0].weights)
"""


def test_a_users_own_strategy_lies_beside_fed_yaml(tmp_path):
    (tmp_path / "strategy_of_mine.py").write_text(MINE)
    before = list(sys.path)
    strategy = build(Named(name="strategy_of_mine:First"), folder=tmp_path)
    assert sys.path == before
    assert strategy.aggregate({}, contributions(1), {}).model.keys() == model_like(1).keys()


def test_a_name_is_checked_without_torch():
    code = "import sys; from fedctl.strategies import resolve; resolve('fedavg'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert resolve("my_package.module:Mine") == "my_package.module:Mine"
