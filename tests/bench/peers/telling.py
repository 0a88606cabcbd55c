"""How the figures of peers are shown: side by side, and as rows with the targets of fedctl."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.measure import Row, shown

MB = 1e6
MEASURES: Sequence[tuple[str, str, float, str]] = (
    ("a round, median from the second on", "round_s", 1, "s"),
    ("first round", "first_round_s", 1, "s"),
    ("first command to round 1", "to_round_1_s", 1, "s"),
    ("run submitted to round 1", "submitted_to_round_1_s", 1, "s"),
    ("first command to last model", "whole_s", 1, "s"),
    ("CPU, all processes", "cpu_s", 1, "s"),
    ("cores that other work took meanwhile", "elsewhere_cores", 1, ""),
    ("between machines, a round", "line_bytes_a_round", MB, "MB"),
    ("of it to nodes", "to_nodes_bytes_a_round", MB, "MB"),
    ("loopback in all, a round", "lo_bytes_a_round", MB, "MB"),
    ("between machines, whole run", "line_bytes", MB, "MB"),
    ("coordinator's memory, peak RSS", "coordinator_rss", MB, "MB"),
    ("coordinator's memory, peak PSS", "coordinator_pss", MB, "MB"),
    ("a node's memory, peak RSS", "node_rss", MB, "MB"),
    ("a node's memory, peak PSS", "node_pss", MB, "MB"),
    ("all memory, peak RSS", "all_rss", MB, "MB"),
    ("all memory, peak PSS", "all_pss", MB, "MB"),
    ("accuracy of the last model", "accuracy", 1, ""),
)
"""What is said, the figure, and by what it is divided for which unit."""

BEFORE: Mapping[str, Mapping[str, float]] = {
    "NVFLARE 2.9.0": {
        "round_s": 2.90,
        "first_round_s": 6.5,
        "to_round_1_s": 22.5,
        "whole_s": 72.9,
        "cpu_s": 44.7,
        "lo_bytes_a_round": 13.68 * MB,
        "all_rss": 2570 * MB,
        "accuracy": 0.882,
    },
    "Flower 1.42.0": {
        "round_s": 13.1,
        "first_round_s": 13.0,
        "to_round_1_s": 9.0,
        "submitted_to_round_1_s": 4.5,
        "whole_s": 143,
        "cpu_s": 226.5,
        "lo_bytes_a_round": 18.3 * MB,
        "accuracy": 0.884,
    },
}
"""The same work, 4 nodes and 10 rounds on 2 cores, as measured before on an idle machine; these are not run here."""


def side_by_side(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A column a peer, those measured before behind."""
    columns = {**found, **{f"{name}, before": figures for name, figures in BEFORE.items()}}
    lines = [["", *columns]]
    lines += [
        [said, *(shown(figures[name] / by, unit) if name in figures else "-" for figures in columns.values())]
        for said, name, by, unit in MEASURES
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def rows(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any] | None, *, is_coded: bool) -> list[Row]:
    """A run of fedctl and its targets; `theirs` is Flower's, None where it was not run."""
    alone = [
        Row(name=f"{name}: a round", value=ours["round_s"], unit="s", at_most=1.3),
        Row(name=f"{name}: CPU", value=ours["cpu_s"], unit="s", at_most=50),
    ]
    if theirs is None:
        return alone

    def times(figure: str, unit: str, by: float, at_least: float | None) -> Row:
        return Row(
            name=f"{name}: Flower's {figure.removesuffix('_s').replace('_', ' ')}",
            value=theirs[figure] / ours[figure],
            unit="x",
            at_least=at_least,
            beside=f"{shown(ours[figure] / by, unit)} beside {shown(theirs[figure] / by, unit)}",
        )

    return [
        *alone,
        times("round_s", "s", 1, 10),
        times("lo_bytes_a_round", "MB", MB, 15 if is_coded else 2.5),
        times("line_bytes_a_round", "MB", MB, 15 if is_coded else None),
        Row(
            name=f"{name}: accuracy above Flower's",
            value=100 * (ours["accuracy"] - theirs["accuracy"]),
            unit="points",
            at_least=-1,
            beside=f"{ours['accuracy']:.3f} beside {theirs['accuracy']:.3f}",
        ),
    ]
