"""`aggregate`: how fast updates become a model, and in how much memory; `bench_aggregate` measures, this tells it."""

from tests.bench import bench_aggregate
from tests.bench.digits import Workshop
from tests.bench.measure import Row, shown

FEW, MANY = 4, 16


def aggregate(workshop: Workshop) -> list[Row]:
    folder = workshop.path / "updates"
    folder.mkdir()
    bench_aggregate.write_updates(folder, count=MANY, parameters=25 * bench_aggregate.MILLION)
    few, many = (bench_aggregate.in_a_process(folder, "fedavg", count) for count in (FEW, MANY))
    return [
        Row(
            name=f"aggregate: fedavg of {MANY}",
            value=many["input_gb_per_s"],
            unit="GB/s",
            beside=f"{shown(many['seconds'], 's')} for {MANY} updates of {shown(many['model_mb'], 'MB')}; "
            f"{shown(few['input_gb_per_s'], 'GB/s')} with {FEW}",
            details=many,
        ),
        Row(
            name=f"aggregate: memory of {MANY} to that of {FEW}",
            value=many["anonymous_mb"] / few["anonymous_mb"],
            unit="x",
            at_most=1.2,
            beside=f"{shown(many['anonymous_mb'], 'MB')} beside {shown(few['anonymous_mb'], 'MB')}; "
            f"a model is {shown(many['model_mb'], 'MB')}",
            details={str(FEW): few, str(MANY): many},
        ),
    ]
