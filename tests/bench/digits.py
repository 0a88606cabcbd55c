"""The federation that the benchmarks run: the digits template's code over small sites of equal size.

A `Workshop` is a temporary folder with that federation, in which runs are made, kept for whoever asks again, and read.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fedctl.events import Event
from fedctl.journal import read
from tests.bench.measure import FEDCTL, ROOT, cpu_seconds, run

MOST_NODES = 12
SEED = 7
MODEL_ARGS: Mapping[str, Any] = {"lr": 0.05}
DATA_ARGS: Mapping[str, Any] = {"sites": MOST_NODES, "alpha": 100, "seed": SEED, "batch_size": 32}
TRAINER: Mapping[str, Any] = {"max_epochs": 2}
THREADS = 1
SLOWED = """\
import time

from data import DigitsData


class Slowed(DigitsData):
    def __init__(self, *, batch_s, **arguments):
        super().__init__(**arguments)
        self.batch_s = batch_s

    def on_before_batch_transfer(self, batch, _index):
        if self.trainer.training:
            time.sleep(self.batch_s)
        return batch
"""
"""The template's data on a node that sleeps for so many seconds at every batch that it trains on."""


def fed_yaml(nodes: int, rounds: int) -> str:
    """The federation of that many nodes; JSON's braces are YAML's too."""
    return f"""\
name: digits
seed: {SEED}
rounds: {rounds}
task:
  model: model.py:DigitsNet
  model_args: {dict(MODEL_ARGS)}
  data: data.py:DigitsData
  data_args: {dict(DATA_ARGS)}
  trainer: {dict(TRAINER)}
  monitor: {{metric: val_acc, mode: max}}
defaults: {{accelerator: cpu, threads: {THREADS}}}
nodes:
  - {{name: "{node_name("{i:02d}")}", count: {nodes}, host: local, data: {{site: "{{i}}"}}}}
"""


def node_name(number: str) -> str:
    return f"site-{number}"


@dataclass(slots=True)
class Workshop:
    """Use it as a context manager; everything in it is removed at the end."""

    path: Path = field(default_factory=Path)
    _runs: dict[tuple[int, int, int], Path] = field(default_factory=dict)
    _made: int = 0
    _exits: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        self.path = Path(self._exits.enter_context(tempfile.TemporaryDirectory(prefix="fedctl-bench-")))
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def folder(self, nodes: int, rounds: int) -> Path:
        """A new federation's folder."""
        self._made += 1
        folder = self.path / f"{self._made:02d}"
        folder.mkdir()
        for name in ("model.py", "data.py"):
            shutil.copy(ROOT / "templates" / "digits" / name, folder)
        (folder / "fed.yaml").write_text(fed_yaml(nodes, rounds))
        return folder

    def environment(self, folder: Path) -> dict[str, str]:
        """Nodes that nobody has used yet."""
        return {**os.environ, "FEDCTL_HOME": str(folder / "nodes"), "PYTHONPATH": str(ROOT)}

    def finished(self, nodes: int, rounds: int, *, again: int = 0) -> Path:
        """The folder of a federation whose run `bench` has finished; made at the first call for each `again`."""
        if (nodes, rounds, again) not in self._runs:
            folder = self.folder(nodes, rounds)
            self.launch(folder)
            self._runs[nodes, rounds, again] = folder
        return self._runs[nodes, rounds, again]

    def launch(self, folder: Path) -> None:
        """Run a federation to its end, as the run `bench`."""
        with self._no_worker_left(folder):
            run([*FEDCTL, "launch", "--run", "bench"], cwd=folder, env=self.environment(folder))

    def cpu_of_a_run(self, nodes: int, rounds: int) -> tuple[float, Path]:
        """The CPU seconds of a whole run, and its folder."""
        folder = self.folder(nodes, rounds)
        argv = [*FEDCTL, "launch", "--run", "bench", "--file", str(folder / "fed.yaml")]
        with self._no_worker_left(folder):
            return cpu_seconds(argv, env=self.environment(folder)), folder

    @contextmanager
    def _no_worker_left(self, folder: Path) -> Iterator[None]:
        """A run that fails, or is left, would leave a worker to the benchmarks that follow."""
        try:
            yield
        except BaseException:
            with suppress(RuntimeError):
                run([*FEDCTL, "stop", "bench"], cwd=folder, env=self.environment(folder))
            raise


def journal(folder: Path) -> list[Event]:
    """What happened in the run `bench`."""
    return read(folder / "runs" / "bench" / "events.jsonl")
