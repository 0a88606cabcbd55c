"""The benchmarks' own small parts: how rows are told and arguments read. What they measure is never tested."""

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT)
    from tests.bench import measure

    return measure


def test_the_table_has_a_line_a_row_and_marks_what_misses_its_target(measure: ModuleType):
    rows = [
        measure.Row(name="start", value=1.234, unit="x", at_most=1.6, beside="5 s beside 4 s"),
        measure.Row(name="a longer name", value=0.3, unit="s", at_most=0.25),
        measure.Row(name="speed", value=2.85, unit="GB/s"),
    ]
    assert measure.table(rows).splitlines() == [
        "  name            measured     target  beside",
        "  start              1.23x   <= 1.60x  5 s beside 4 s",
        "* a longer name      0.3 s  <= 0.25 s",
        "  speed          2.85 GB/s          -",
    ]


@pytest.mark.parametrize(
    ("targets", "value", "met"),
    [
        ({}, 1.0, None),
        ({"at_most": 2.0}, 2.0, True),
        ({"at_most": 2.0}, 2.1, False),
        ({"at_least": 2.0}, 2.1, True),
        ({"at_least": 2.0}, 1.9, False),
        ({"at_most": 2.0}, math.nan, None),
    ],
)
def test_a_target_is_met_or_missed_or_not_there(measure: ModuleType, targets: Any, value: float, met: Any):
    row = measure.Row(name="any", value=value, **targets)
    assert row.is_met is met
    assert json.loads(json.dumps(row.to_json(), allow_nan=False))["is_met"] is met


def test_a_ratio_is_taken_between_neighbours(measure: ModuleType):
    assert measure.ratio([2.0, 40.0, 3.0], [1.0, 20.0, 3.0]) == 2.0


def test_a_slope_is_the_growth_a_unit(measure: ModuleType):
    assert measure.slope([(4, 0.1), (8, 0.3), (12, 0.5)]) == pytest.approx(0.05)


def test_only_benchmarks_that_are_there_can_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.syspath_prepend(ROOT)
    from tests.bench.__main__ import BENCHMARKS, parse

    arguments = parse(["--only", "start", "--only", "cpu", "--json", "out.json"])
    assert (arguments.only, arguments.json) == (["start", "cpu"], Path("out.json"))
    assert parse([]).only is None
    with pytest.raises(SystemExit) as refused:
        parse(["--only", "nothing"])
    assert refused.value.code == 2
    said = capsys.readouterr().err
    assert all(name in said for name in BENCHMARKS)


def test_the_federation_that_is_measured_is_a_valid_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT)
    from fedctl import topology
    from tests.bench.digits import fed_yaml, node_name

    federation = topology.parse(fed_yaml(nodes=4, rounds=3), name="fed.yaml", folder=ROOT / "templates" / "digits")
    assert [node.name for node in federation.nodes] == [node_name(f"{i:02d}") for i in range(4)]
    assert federation.rounds == 3
