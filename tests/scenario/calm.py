"""One run that every way to die is tried on, and what it comes to when nothing befalls it."""

from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedctl.state import RunState
from tests.scenario.world import Scene, federation

whole = federation("alice", "bob", strategy="fedavgm", compare=True)


def scene(folder: Path, **world: Any) -> Scene:
    """Two nodes, two rounds, momentum, the comparison, and a failure that a second attempt mends."""
    made = Scene(folder, whole, **world)
    made.world.fail_at("bob", 1, 1)
    return made


@cache
def calm() -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        made = scene(Path(folder) / "calm")
        return made.outcome(made.go())


def is_finished(made: Scene) -> bool:
    return made.state.status == "finished"


def went_on(made: Scene) -> RunState:
    """The state at the end; a run that finished before the death is not resumed."""
    return made.state if is_finished(made) else made.go()


def assert_calm_end(made: Scene, state: RunState) -> None:
    """The outcome of a calm run, each task done once, and nothing half-written."""
    assert made.outcome(state) == calm()
    assert max(Counter(made.world.done).values()) == 1
    assert made.leftovers() == []
