"""`aggregate`: how fast updates become a model beside Flower, and in how much memory; `bench_aggregate` measures."""

from pathlib import Path

from tests.bench import bench_aggregate
from tests.bench.digits import Workshop
from tests.bench.measure import Row, shown

MILLION = bench_aggregate.MILLION
COUNT, MANY = 16, 64
ROBUST = ("median", "trimmed-mean", "krum", "bulyan")
BOUNDED = ("fedavg", "median", "trimmed-mean", "krum")
SPARE_MB = 64


def aggregate(workshop: Workshop) -> list[Row]:
    large, medium, narrow = (workshop.path / name for name in ("large", "medium", "narrow"))
    for folder in (large, medium, narrow):
        folder.mkdir()
    bench_aggregate.write_updates(large, count=COUNT, parameters=25 * MILLION)
    bench_aggregate.write_updates(medium, count=COUNT, parameters=10 * MILLION)
    bench_aggregate.write_updates(narrow, count=COUNT, parameters=10 * MILLION, dtype="bfloat16")
    for number in range(COUNT, MANY):
        (large / f"{number}.safetensors").hardlink_to(large / f"{number % COUNT}.safetensors")
    return [*_mean(large), *(_robust(medium, name) for name in ROBUST), _narrow(medium, narrow), *_memory(large)]


def _mean(folder: Path) -> list[Row]:
    ours = bench_aggregate.in_a_process(folder, "fedavg", COUNT)
    theirs = bench_aggregate.of_flower(folder, "fedavg", COUNT)
    return [
        Row(
            name=f"aggregate: fedavg of {COUNT}",
            value=ours["input_gb_per_s"],
            unit="GB/s",
            at_least=2.5,
            beside=f"{shown(ours['seconds'], 's')} for {COUNT} updates of {shown(ours['model_mb'], 'MB')}",
            details=ours,
        ),
        Row(
            name="aggregate: fedavg from files beside Flower's from memory",
            value=theirs / ours["seconds"],
            unit="x",
            at_least=0.8,
            beside=f"{shown(ours['seconds'], 's')} beside {shown(theirs, 's')}",
        ),
    ]


def _robust(folder: Path, name: str) -> Row:
    ours, theirs = bench_aggregate.in_a_process(folder, name, COUNT), bench_aggregate.of_flower(folder, name, COUNT)
    return Row(
        name=f"aggregate: {name} beside Flower's",
        value=theirs / ours["seconds"],
        unit="x",
        at_least=3.0,
        beside=f"{shown(ours['seconds'], 's')} beside {shown(theirs, 's')}, {COUNT} of {shown(ours['model_mb'], 'MB')}",
        details=ours,
    )


def _narrow(single: Path, narrow: Path) -> Row:
    whole, half = (bench_aggregate.in_a_process(folder, "fedavg", COUNT) for folder in (single, narrow))
    return Row(
        name="aggregate: bfloat16 beside float32, a parameter",
        value=whole["seconds"] / half["seconds"],
        unit="x",
        at_least=0.6,
        beside=f"{shown(half['seconds'], 's')} beside {shown(whole['seconds'], 's')}",
    )


def _memory(folder: Path) -> list[Row]:
    rows = {name: bench_aggregate.in_a_process(folder, name, MANY, tries=1) for name in BOUNDED}
    return [
        Row(
            name=f"aggregate: memory of {name}, {MANY} updates",
            value=row["anonymous_mb"],
            unit="MB",
            at_most=row["model_mb"] + SPARE_MB,
            beside=f"a model is {shown(row['model_mb'], 'MB')}",
            details=row,
        )
        for name, row in rows.items()
    ]
