"""What the numbers of a run mean: global and personal metrics, the best round, the worst node, what federating bought.

Pure and standard library only. A global metric is the mean over all examples of all nodes; sums run in the order of
node names, so that the same journal gives the same bits.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedctl.federation import Monitor
from fedctl.records import Score
from fedctl.state import Answer, RunState, Scored

Metrics = Mapping[str, float]
Label = Literal["global", "personal"]
"""Whose model was scored: everyone's, or the node's own."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Personal:
    """The global model and a node's own one, both on that node's validation data."""

    node: str
    global_: Metrics
    personal: Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Personalization:
    """Personal models beside the global one of a round, over the nodes that have scored both.

    They are what nodes keep between rounds, or were `finetuned` after the last one. `metrics` are means over all
    examples, each over the nodes where both models have a finite number of it, or any where none has. By the monitored
    metric those are `compared`; on some nodes the personal model has `diverged`: its number is not finite; `worst` is
    the node that each side serves worst, None where fewer than two can be compared. `global_is_part` where nodes train
    tensors that stay at home: the global model has these as they were at first.
    """

    round: int
    finetuned: bool
    global_is_part: bool
    metrics: Mapping[Label, Metrics]
    compared: tuple[str, ...]
    diverged: tuple[str, ...]
    worst: Mapping[Label, WorstNode | None]
    nodes: tuple[Personal, ...]


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
    return round < state.round or _have_all_answered(state, state.evaluations.get(round, {}))


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
    number = max(finite, key=lambda number: goodness(finite[number], state.mode))
    return BestRound(round=number, metrics=average(global_scores(state, number).values()))


def worst_node(state: RunState) -> WorstNode | None:
    """The node whose data the newest model that all have scored serves worst."""
    newest = max(trajectory(state), default=None)
    return None if newest is None else _worst(state, global_scores(state, newest))


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


def personalization(state: RunState) -> Personalization | None:
    """The newest personal models that nobody is waited for to score; while there are none, the newest at all.

    None where no node has scored a personal model beside the global one.
    """
    found = (one for one in _personal_scorings(state) if one.scores["personal"])
    newest = next(found, None)
    if newest is not None and not newest.is_over:
        newest = next((one for one in found if one.is_over), newest)
    if newest is None:
        return None
    both = newest.scores
    nodes = tuple(
        Personal(node=name, global_=both["global"][name].metrics, personal=both["personal"][name].metrics)
        for name in state.nodes
        if name in both["personal"]
    )
    paired = {one.node: one.personal[state.metric] for one in _paired(nodes, state.metric)}
    return Personalization(
        round=newest.round,
        finetuned=newest.is_finetuned,
        global_is_part=state.rest is not None and _have_kept_models(state),
        metrics=_means(nodes, both),
        compared=tuple(_comparable(nodes, state.metric)),
        diverged=tuple(name for name, value in paired.items() if not math.isfinite(value)),
        worst={
            label: _worst(state, {name: score for name, score in scores.items() if name in paired})
            if len(paired) > 1
            else None
            for label, scores in both.items()
        },
        nodes=nodes,
    )


def personal_metrics(state: RunState) -> dict[str, Metrics]:
    """By node, what its newest personal model that has been scored does on its own data."""
    metrics: dict[str, Metrics] = {}
    for one in _personal_scorings(state):
        for name, score in one.scores["personal"].items():
            metrics.setdefault(name, score.metrics)
        if len(metrics) == len(state.nodes):
            break
    return metrics


def goodness(value: float, mode: str) -> float:
    """Higher is better in either mode, and nothing is worse than a number that is none."""
    if math.isnan(value):
        return -math.inf
    return value if mode == "max" else -value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scoring:
    """How the nodes that have scored both models of a round did; `is_over` when nobody is waited for any more."""

    round: int
    is_finetuned: bool
    is_over: bool
    scores: Mapping[Label, Mapping[str, Score]]


def _personal_scorings(state: RunState) -> Iterator[_Scoring]:
    """All scorings of personal models, the newest first, each in the order of names."""
    if state.finetuned:
        is_over = _have_all_answered(state, state.finetuned)
        yield _Scoring(round=state.round, is_finetuned=True, is_over=is_over, scores=_both(state.finetuned))
    for number in sorted(state.evaluations, reverse=True):
        scores = _both(state.evaluations[number])
        yield _Scoring(round=number, is_finetuned=False, is_over=is_settled(state, number), scores=scores)


def _both(answers: Mapping[str, Answer]) -> dict[Label, dict[str, Score]]:
    if not any(isinstance(answer, Scored) and "personal" in answer.scores for answer in answers.values()):
        return {"global": {}, "personal": {}}  # soon seen: most runs have none in all their rounds
    personal, everyones = _labelled(answers, "personal"), _labelled(answers, "global")
    shared = personal.keys() & everyones
    return {
        "global": {name: score for name, score in everyones.items() if name in shared},
        "personal": {name: score for name, score in personal.items() if name in shared},
    }


def _have_kept_models(state: RunState) -> bool:
    """Whether nodes have had models of their own in the rounds, before any fine-tuning."""
    return any(one.scores["personal"] for one in _personal_scorings(state) if not one.is_finetuned)


def _means(nodes: Sequence[Personal], both: Mapping[Label, Mapping[str, Score]]) -> dict[Label, Metrics]:
    names = {name for one in nodes for name in one.global_}
    counting = {name: frozenset(_comparable(nodes, name)) for name in names}

    def counted(node: str, score: Score) -> Score:
        kept = {name: value for name, value in score.metrics.items() if node in counting.get(name, ())}
        return Score(examples=score.examples, metrics=kept)

    return {label: average(counted(*one) for one in scores.items()) for label, scores in both.items()}


def _comparable(nodes: Sequence[Personal], metric: str) -> list[str]:
    """The nodes where both models have a finite number of a metric, or any where none has."""
    paired = _paired(nodes, metric)
    finite = [one for one in paired if math.isfinite(one.global_[metric]) and math.isfinite(one.personal[metric])]
    return [one.node for one in finite or paired]


def _paired(nodes: Sequence[Personal], metric: str) -> list[Personal]:
    return [one for one in nodes if metric in one.global_ and metric in one.personal]


def _have_all_answered(state: RunState, answers: Mapping[str, Answer]) -> bool:
    """Whether no node is waited for; one that trains an earlier model is asked for its score of a later one."""
    asked = (name for name, node in state.nodes.items() if node.status == "ready" and name not in state.pending)
    return all(name in answers for name in asked)


def _worst(state: RunState, scores: Mapping[str, Score]) -> WorstNode | None:
    values = {name: score.metrics[state.metric] for name, score in scores.items() if state.metric in score.metrics}
    if not values:
        return None
    name = min(values, key=lambda name: goodness(values[name], state.mode))
    return WorstNode(node=name, metrics=scores[name].metrics)


def _newest(state: RunState) -> int | None:
    return max((number for number in state.evaluations if global_scores(state, number)), default=None)


def _labelled(answers: Mapping[str, Answer], label: str) -> dict[str, Score]:
    scored = ((name, answer.scores) for name, answer in sorted(answers.items()) if isinstance(answer, Scored))
    return {name: scores[label] for name, scores in scored if label in scores}
