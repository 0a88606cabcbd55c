"""`fedctl status`: a run's state, from its journal alone."""

import os
import time
from collections.abc import Iterator

from fedctl.errors import StateError
from fedctl.events import Event
from fedctl.journal import follow as follow_journal
from fedctl.journal import read
from fedctl.records import TaskKey
from fedctl.rundir import RunDir
from fedctl.state import RunState, apply, fold
from fedctl.telemetry import Preparing, Telemetry, load

LOOK_S = 0.2
SAMPLES_READ = 4 * 2**20
"""How much of the end of `metrics.jsonl` is read, in bytes: what each node does now stands there."""


def status(run: RunDir) -> tuple[RunState, bool]:
    """The state, and whether a coordinator works on the run right now."""
    run.facts()
    alive = run.is_alive()
    return fold(read(run.journal)), alive


def follow(run: RunDir) -> Iterator[tuple[RunState, list[Event | Telemetry], bool]]:
    """The state, what is new since the last, and whether a coordinator lives; ends when the run does."""
    run.facts()
    state = RunState()
    samples = _samples(run)
    alive = True
    for events in follow_journal(run.journal):
        for event in events:
            state = apply(state, event)
        yield state, [*events, *next(samples)], alive
        if not events and not alive:
            return
        alive = run.is_alive()  # asked before the next look at the journal, so that its last events are seen
        time.sleep(LOOK_S)


def _samples(run: RunDir) -> Iterator[list[Telemetry]]:
    """The newest of each task and node in what `metrics.jsonl` has gained; damaged lines are nothing that matters."""
    offset = -1
    while True:
        newest: dict[TaskKey | str, Telemetry] = {}
        if run.metrics.exists():
            with run.metrics.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                if not 0 <= offset <= size:  # at first, and in a file that was begun anew
                    offset = max(0, size - SAMPLES_READ)
                file.seek(offset)
                fresh = file.read()
            end = fresh.rfind(b"\n") + 1
            offset += end
            for line in fresh[:end].splitlines():
                try:
                    sample = load(line)
                except ValueError:
                    continue
                newest[sample.node if isinstance(sample, Preparing) else sample.key] = sample
        yield list(newest.values())


def require_held(run: RunDir) -> RunState:
    """The state of a run that waits for a manual aggregation; raises StateError for any other."""
    state, _ = status(run)
    if state.open is None or state.status != "held":
        raise StateError(
            f"run {run.name} holds no round to commit",
            hint="`fedctl launch --hold` stops once a round's updates are in",
        )
    return state
