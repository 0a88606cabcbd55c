"""What a schedule says that does not go together, with itself or with the number of nodes."""

from collections.abc import Iterator

from fedctl.federation import Schedule, needed
from fedctl.topology.problems import Problem
from fedctl.topology.schema import FederationSection, ScheduleSection

_SYNCHRONOUS = ("cohort", "overprovision")
_BUFFERED = ("buffer", "concurrency", "staleness", "max_staleness")


def schedule_problems(section: ScheduleSection, whole: FederationSection) -> Iterator[Problem]:
    """All of them; `section` is the schedule of the `whole`."""
    schedule, nodes = Schedule(**section.given), sum(node.count or 1 for node in whole.nodes)
    yield from (_buffered if schedule.mode == "buffered" else _synchronous)(section, schedule, nodes)
    has_windows = any(entry and entry.when for entry in (whole.defaults, *whole.nodes))
    if schedule.partial and schedule.deadline_s is None and not has_windows:
        text = "has no deadline by which a node could hand in what it has done"
        yield Problem(address=("schedule", "partial"), text=text, hint="add `deadline: 30m` beside it")


def _synchronous(section: ScheduleSection, schedule: Schedule, nodes: int) -> Iterator[Problem]:
    for key in _BUFFERED:
        if key in section.given:
            hint = "add `mode: buffered` beside it, or leave it out"
            yield Problem(address=("schedule", key), text="belongs to `mode: buffered`", hint=hint)
    cohort = needed(schedule.cohort, nodes)
    if isinstance(schedule.cohort, int) and schedule.cohort > nodes:
        text = f"asks for {schedule.cohort} nodes of {nodes}"
        yield Problem(address=("schedule", "cohort"), text=text, hint="1.0 is all of them")
    elif isinstance(schedule.quorum, int) and schedule.quorum > cohort:
        text = f"asks for {schedule.quorum} updates of a cohort of {cohort}"
        yield Problem(address=("schedule", "quorum"), text=text, hint="1.0 is all of them")
    if schedule.overprovision > 1 and cohort == nodes:
        text = f"asks more nodes than a cohort of all {nodes}"
        yield Problem(address=("schedule", "overprovision"), text=text, hint="give `cohort` a smaller number or share")


def _buffered(section: ScheduleSection, schedule: Schedule, nodes: int) -> Iterator[Problem]:
    for key in _SYNCHRONOUS:
        if key in section.given:
            yield Problem(
                address=("schedule", key),
                text="does not go with `mode: buffered`, where nodes train on from model to model",
                hint="leave it out; `concurrency` says how many nodes train at a time",
            )
    if schedule.buffer is None:
        hint = "such as `buffer: 10`: so many updates make the next model"
        yield Problem(address=("schedule", "buffer"), text="missing for `mode: buffered`", hint=hint)
    elif schedule.buffer > nodes:
        text = f"asks for updates of {schedule.buffer} nodes of {nodes}, and each gives a model one"
        yield Problem(
            address=("schedule", "buffer"),
            text=text,
            hint="give it fewer than there are nodes, or each model waits for the slowest",
        )
    elif isinstance(schedule.quorum, int) and schedule.quorum > schedule.buffer:
        text = f"asks for {schedule.quorum} updates of a buffer of {schedule.buffer}"
        yield Problem(address=("schedule", "quorum"), text=text, hint="1.0 is all of them")
