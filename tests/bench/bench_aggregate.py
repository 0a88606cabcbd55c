"""How fast and in how much memory updates become a model: `python tests/bench/bench_aggregate.py [--json PATH]`.

Every row is measured in a process of its own, on files of random float32 values that the page cache holds: from opening
the files to the written, hashed and synced model, the best of three. Anonymous memory is what the process cannot give
back (RssAnon), its peak less what stood before; a memory-mapped file counts nothing there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

MILLION = 1_000_000
TENSORS = 5  # the largest of a model is a fifth of it
HOSTILE = 3
OPTIONS = {name: {"hostile": HOSTILE} for name in ("trimmed-mean", "krum", "multi-krum", "bulyan")}
FLOWER = Path(sys.prefix) / "flower" / "bin" / "python"


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print a table, and return its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows there too")
    parser.add_argument("--parameters", type=int, default=25 * MILLION, help="of each model")
    parser.add_argument("--folder", type=Path, help="where to put 17 models (default: a temporary folder)")
    arguments = parser.parse_args(argv)
    strategies = ("fedavg", "fedavgm", "fedadam", "median", "trimmed-mean", "krum", "bulyan", "geometric-median")
    cases = [("fedavg", 4), *((strategy, 16) for strategy in strategies)]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_updates(Path(folder), count=16, parameters=arguments.parameters)
        rows = [in_a_process(Path(folder), strategy, count) for strategy, count in cases]
    print(f"{'strategy':17}{'updates':>9}{'seconds':>9}{'GB/s of input':>15}{'anonymous MB':>14}{'model MB':>10}")
    for row in rows:
        print(
            f"{row['strategy']:17}{row['updates']:9}{row['seconds']:9.2f}{row['input_gb_per_s']:15.2f}"
            f"{row['anonymous_mb']:14.0f}{row['model_mb']:10.0f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return rows


def write_updates(folder: Path, *, count: int, parameters: int, dtype: str = "float32") -> None:
    """`count` files of random values, `0.safetensors` and on, of `parameters` elements in equal tensors."""
    import torch

    from fedctl.weights import save

    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        values = [torch.randn(parameters // TENSORS, generator=generator) for _ in range(TENSORS)]
        save(
            folder / f"{number}.safetensors",
            {f"layer{n}": value.to(getattr(torch, dtype)) for n, value in enumerate(values)},
        )


def in_a_process(folder: Path, strategy: str, count: int, *, tries: int = 3) -> dict[str, Any]:
    """The row of one case, measured by a fresh interpreter."""
    argv = [sys.executable, __file__, "--measure", str(folder), strategy, str(count), str(tries)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def of_flower(folder: Path, strategy: str, count: int) -> float:
    """Seconds that Flower's strategy takes for the same arrays, which it has in memory; `make bench` installs it."""
    script = Path(__file__).with_name("flower_aggregate.py")
    argv = [FLOWER, script, folder, strategy, str(count), str(HOSTILE)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    return float(done.stdout)


def measure(folder: Path, strategy: str, count: int, tries: int) -> dict[str, Any]:
    """Aggregate the first `count` updates in `folder`, after a small rehearsal that loads every library."""
    from fedctl.aggregation import aggregate_round
    from fedctl.federation import Named
    from fedctl.strategies import build

    least = 4 * HOSTILE + 3  # as many as bulyan needs
    write_updates(rehearsal := Path(tempfile.mkdtemp(dir=folder)), count=least, parameters=TENSORS)

    def aggregate(source: Path, files: int) -> None:
        aggregate_round(
            source / "0.safetensors",
            {f"node-{n:02d}": (source / f"{n}.safetensors", n + 1) for n in range(files)},
            memory=None,
            strategy=build(Named(name=strategy, options=OPTIONS.get(strategy, {}))),
            model_out=source / "model.out",
            memory_out=source / "memory.out",
        )

    aggregate(rehearsal, least)
    with Peak() as peak:  # first, before freed memory blurs where it starts; and apart, since sampling takes its time
        aggregate(folder, count)
    seconds = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        aggregate(folder, count)
        seconds = min(seconds, time.perf_counter() - start)
    size = (folder / "0.safetensors").stat().st_size
    return {
        "strategy": strategy,
        "updates": count,
        "seconds": seconds,
        "input_gb_per_s": count * size / seconds / 1e9,
        "anonymous_mb": peak.growth / 1e6,
        "model_mb": size / 1e6,
    }


class Peak:
    """Samples this process's anonymous memory; `growth` is its highest value less the first, in bytes."""

    def __enter__(self) -> Self:
        self.start = self.highest = anonymous_memory()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        return self.highest - self.start

    def _sample(self) -> None:
        while not self._over.wait(0.001):
            self.highest = max(self.highest, anonymous_memory())


def anonymous_memory() -> int:
    """RssAnon of this process, in bytes (Linux)."""
    with Path("/proc/self/status").open() as status:
        line = next(line for line in status if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))))
    else:
        main()
