"""What the numbers of a run mean: global metrics, the best round, the worst node, and what federating bought.

Pure and standard library only. A global metric is the mean over all examples of all nodes; sums run in the order of
node names, so that the same journal gives the same bits.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedctl.federation import Monitor
from fedctl.records import Score
from fedctl.state import Answer, RunState, Scored

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A node's model trained alone beside the federated one: on everyone's validation data, and on the node's own."""

    node: str
    alone: Metrics
    federated: Metrics
    alone_own: Metrics
    federated_own: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class BestRound:
    """The round whose model scored best by the monitored metric."""

    round: int
    metrics: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstNode:
    """The node on whose data the newest settled model does worst by the monitored metric."""

    node: str
    metrics: Metrics


def monitor(state: RunState) -> Monitor:
    """The metric that decides which model is best."""
    return Monitor(metric=state.metric, mode="max" if state.mode == "max" else "min")


def average(scores: Iterable[Score]) -> Metrics:
    """Each metric's mean over all examples; its bits depend on the order of the scores."""
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    kept = list(scores)
    weighted = any(score.examples for score in kept)
    for score in kept:
        weight = float(score.examples if weighted else 1)
        for name, value in score.metrics.items():
            if weight:
                sums[name] = sums.get(name, 0.0) + weight * value
                weights[name] = weights.get(name, 0.0) + weight
    return {name: total / weights[name] for name, total in sums.items()}


def global_scores(state: RunState, round: int) -> dict[str, Score]:
    """What each node has scored the model of that round, in the order of names."""
    return _labelled(state.evaluations.get(round, {}), "global")


def newest_metrics(state: RunState) -> Metrics:
    """The global metrics of the newest model that any node has evaluated."""
    newest = _newest(state)
    return {} if newest is None else average(global_scores(state, newest).values())


def is_settled(state: RunState, round: int) -> bool:
    """Nobody scores the model of an earlier round any more; the newest waits for the nodes that are ready."""
    answers = state.evaluations.get(round, {})
    return round < state.round or all(name in answers for name, node in state.nodes.items() if node.status == "ready")


def trajectory(state: RunState) -> dict[int, float]:
    """The monitored global metric by round, of the models that every node it still waits for has scored."""
    curve: dict[int, float] = {}
    for number in sorted(state.evaluations):
        if is_settled(state, number):
            value = average(global_scores(state, number).values()).get(state.metric)
            if value is not None:
                curve[number] = value
    return curve


def best_round(state: RunState) -> BestRound | None:
    """The first round with the best model, or None while no model has a finite score."""
    finite = {number: value for number, value in trajectory(state).items() if math.isfinite(value)}
    if not finite:
        return None
    number = max(finite, key=lambda number: _goodness(state, finite[number]))
    return BestRound(round=number, metrics=average(global_scores(state, number).values()))


def worst_node(state: RunState) -> WorstNode | None:
    """The node whose data the newest model that all have scored serves worst."""
    newest = max(trajectory(state), default=None)
    scores = {} if newest is None else global_scores(state, newest)
    values = {name: score.metrics[state.metric] for name, score in scores.items() if state.metric in score.metrics}
    if not values:
        return None
    name = min(values, key=lambda name: _goodness(state, values[name]))
    return WorstNode(node=name, metrics=scores[name].metrics)


def comparisons(state: RunState) -> tuple[Comparison, ...]:
    """A row for each node whose model trained alone has been scored by any node."""
    federated = _labelled(state.compared, "global")
    on_everyones = average(federated.values())
    rows = []
    for name in state.nodes:
        alone = _labelled(state.compared, f"alone/{name}")
        if alone:
            rows.append(
                Comparison(
                    node=name,
                    alone=average(alone.values()),
                    federated=on_everyones,
                    alone_own=alone[name].metrics if name in alone else {},
                    federated_own=federated[name].metrics if name in federated else {},
                )
            )
    return tuple(rows)


def _newest(state: RunState) -> int | None:
    return max((number for number in state.evaluations if global_scores(state, number)), default=None)


def _labelled(answers: Mapping[str, Answer], label: str) -> dict[str, Score]:
    scored = ((name, answer.scores) for name, answer in sorted(answers.items()) if isinstance(answer, Scored))
    return {name: scores[label] for name, scores in scored if label in scores}


def _goodness(state: RunState, value: float) -> float:
    """Higher is better in either mode, and nothing is worse than a number that is none."""
    if math.isnan(value):
        return -math.inf
    return value if state.mode == "max" else -value
