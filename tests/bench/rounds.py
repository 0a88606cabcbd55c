"""`round`: what a round costs beyond the training in it, and how that grows with the nodes of one machine.

The overhead is the time from RoundOpened to RoundAggregated less the nodes' seconds in `fit`, which as many of them
spend at once as there are slots. It holds all the rest: the task's way to the node and back, loading and saving, the
validation of the last model (which runs beside the training, in the same slots), aggregation, and idle slots.
"""

import os

from fedctl.events import Event, ModelEvaluated, RoundAggregated, RoundOpened, UpdateReceived
from tests.bench.digits import Workshop, journal
from tests.bench.measure import Row, median, shown, slope

Costs = list[dict[str, float]]

NODES = (4, 8, 12)
TIMES = 2
"""Runs of each size, in turns; the quieter one counts, for a load that comes during one of them bends the growth."""
ROUNDS = 12
WARM = 3
"""The first round that counts: by then every slot has its process and every process its data."""


def rounds(workshop: Workshop) -> list[Row]:
    slots = len(os.sched_getaffinity(0))
    runs: dict[int, list[Costs]] = {nodes: [] for nodes in NODES}
    for again in range(TIMES):
        for nodes in NODES:
            runs[nodes].append(_costs(journal(workshop.finished(nodes, ROUNDS, again=again)), slots))
    costs = {nodes: min(found, key=_overhead) for nodes, found in runs.items()}
    overheads = {nodes: _overhead(found) for nodes, found in costs.items()}
    fewest = costs[NODES[0]]
    typical = {part: shown(median(cost[part] for cost in fewest), "s") for part in fewest[0]}
    return [
        Row(
            name=f"round: overhead of {NODES[0]} nodes",
            value=overheads[NODES[0]],
            unit="s",
            at_most=0.25,
            beside=f"{typical['fit']} of training in {typical['round']}; validating takes {typical['validate']}",
            details={"slots": slots, "rounds": runs[NODES[0]]},
        ),
        Row(
            name="round: growth a node",
            value=slope(list(overheads.items())) * 1000,
            unit="ms",
            at_most=15,
            beside="overhead "
            + ", ".join(f"{shown(seconds, 's')} with {nodes}" for nodes, seconds in overheads.items()),
            details={"slots": slots, "rounds": runs},
        ),
    ]


def _overhead(costs: Costs) -> float:
    return median(cost["overhead"] for cost in costs)


def _costs(events: list[Event], slots: int) -> Costs:
    """The seconds of each warm round: its own, and those of training and validating, shared among the slots."""
    opened = {event.round: event.at for event in events if isinstance(event, RoundOpened)}
    closed = {event.round: event.at for event in events if isinstance(event, RoundAggregated)}
    found = []
    for number in range(WARM, ROUNDS + 1):
        whole = (closed[number] - opened[number]).total_seconds()
        fit = sum(e.seconds for e in events if isinstance(e, UpdateReceived) and e.task.round == number)
        validate = sum(
            event.seconds
            for event in events
            if isinstance(event, ModelEvaluated) and opened[number] <= event.at <= closed[number]
        )
        overhead = whole - fit / slots
        found.append({"round": whole, "fit": fit / slots, "validate": validate / slots, "overhead": overhead})
    return found
