"""What was seen of a peer's run, and the figures that come of it. Times are seconds of the wall clock, sizes bytes."""

import json
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.bench.measure import median

COORDINATOR = "coordinator"
"""The side that gathers updates; the rest are nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A run from its first command to its last model; `rounds` are (opened, closed).

    It is `submitted` once the services that must run before are up; fedctl has none but sshd.
    """

    began: float
    submitted: float
    rounds: Sequence[tuple[float, float]]
    ended: float
    model: str
    updates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look. `to_nodes` and `from_nodes` are what the lines carried so far, `lo` what the loopback took in.

    `rss` and `pss` are memory by who has it; `pss` is not looked at each time.
    """

    at: float
    to_nodes: int
    from_nodes: int
    lo: int
    rss: Mapping[str, int]
    pss: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A course, looks at it, and the CPU seconds of those who looked."""

    course: Course
    samples: Sequence[Sample]
    own_cpu_s: float

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> Self:
        held = json.loads(file.read_text())
        return cls(
            course=Course(**held["course"]),
            samples=[Sample(**each) for each in held["samples"]],
            own_cpu_s=held["own_cpu_s"],
        )


def figures(seen: Seen, *, cpu_s: float, elsewhere_s: float) -> dict[str, Any]:
    """The figures of a run of three rounds or more, in which processes took so many CPU seconds, and others elsewhere.

    The watching is among those seconds, and taken off. Bytes a round are counted from the middle of the second round,
    when all train, to that of the last. What a relay carries crosses the loopback twice: once of it is taken off.
    """
    course, samples = seen.course, seen.samples
    (opened, first), *later = course.rounds
    since, until = (sum(span) / 2 for span in (later[0], later[-1]))
    carried = {
        way: (_counted(samples, way, until) - _counted(samples, way, since)) / (len(later) - 1)
        for way in ("to_nodes", "from_nodes", "lo")
    }
    line = carried["to_nodes"] + carried["from_nodes"]
    return {
        "round_s": median(closed - began for began, closed in later),
        "first_round_s": first - opened,
        "rounds_s": [closed - began for began, closed in course.rounds],
        "to_round_1_s": opened - course.began,
        "submitted_to_round_1_s": opened - course.submitted,
        "whole_s": course.ended - course.began,
        "updates": course.updates,
        "cpu_s": cpu_s - seen.own_cpu_s,
        "watching_cpu_s": seen.own_cpu_s,
        "elsewhere_cores": elsewhere_s / (course.ended - course.began),
        "line_bytes_a_round": line,
        "to_nodes_bytes_a_round": carried["to_nodes"],
        "from_nodes_bytes_a_round": carried["from_nodes"],
        "line_bytes": samples[-1].to_nodes + samples[-1].from_nodes,
        "lo_bytes_a_round": carried["lo"] - line,
        **{f"{who}_rss": peak for who, peak in _peaks([each.rss for each in samples]).items()},
        **{f"{who}_pss": peak for who, peak in _peaks([each.pss for each in samples]).items()},
    }


def _peaks(looks: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The most memory of the coordinator, of the largest node, and of all together."""
    return {
        "coordinator": max(look.get(COORDINATOR, 0) for look in looks),
        "node": max(size for look in looks for who, size in look.items() if who != COORDINATOR),
        "all": max(sum(look.values()) for look in looks),
    }


def _counted(samples: Sequence[Sample], name: str, at: float) -> float:
    """What a counter said at a time, as if it had grown evenly from look to look."""
    after = min(max(bisect([each.at for each in samples], at), 1), len(samples) - 1)
    left, right = samples[after - 1], samples[after]
    share = min(max((at - left.at) / (right.at - left.at), 0), 1)
    return getattr(left, name) + share * (getattr(right, name) - getattr(left, name))
