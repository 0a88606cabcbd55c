"""The family of trainers: how a task is trained. A new one is a file here and a line in `TRAINERS`."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, cast

from fedctl.records import Progress, Result, Task


class Trainer(Protocol):
    """Does one task: reads the labelled `models`, writes `update.safetensors` into `folder`, tells its progress."""

    def __call__(
        self,
        task: Task,
        models: Mapping[str, Path],
        folder: Path,
        report: Callable[[Progress], None],
        threads: int,
    ) -> Result: ...


TRAINERS: Mapping[str, str] = {
    "lightning": "fedctl.node.trainers.lightning:perform",
}
"""Names and import strings, so that a name can be checked without importing torch."""


def resolve(target: str) -> Trainer:
    """Import a trainer from its `module:name`."""
    module, _, name = target.partition(":")
    return cast("Trainer", getattr(importlib.import_module(module), name))
