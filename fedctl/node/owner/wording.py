"""A policy in plain words, for whoever answers for the data."""

from __future__ import annotations

from typing import Iterable, List, Sequence, Tuple

from fedctl.node.owner.policy import UNITS, WEEK
from fedctl.node.owner.terms import DifferentialPrivacy, Leave, Limits, Policy

_CODE = {
    "approve": "Code runs after you approved it, byte for byte: `fedctl node approve`.",
    "any": "Any code that the coordinator sends runs as this account.",
}
_ENVIRONMENTS = {
    "approve": "Python packages are installed after you approved their list.",
    "any": "Any Python packages that the coordinator asks for are installed.",
    "none": "No Python packages are installed.",
}
_PLACES = {
    "central": "by the coordinator, which sees updates as they are or their sum",
    "distributed": "by every node to its own masked update",
    "local": "by this node, to each of its steps",
}


def summary(policy: Policy) -> List[str]:
    """One sentence a term, in the order of `policy.yaml`."""
    return [
        _CODE[policy.code],
        _ENVIRONMENTS[policy.environments],
        *_of(policy.pythons, "As a Python, {} may be used as it is."),
        *(
            _of(policy.data.paths, "Tasks may name {}, and what is below.")
            or ["Tasks may name no path of this machine."]
        ),
        *(_of(policy.commands, "To ask whether the machine is free, {} may be run.") or ["Tasks may run no program."]),
        *_leaving(policy.leave),
        *_secure(policy),
        *_private(policy.differential_privacy),
        *([] if policy.rounds is None else [f"In all, trainings are done {policy.rounds} times at most."]),
        *_when(policy),
        *_limited(policy.limits),
        "Training code has no network." if policy.network == "none" else "Training code may use the network.",
        *_open(policy),
    ]


def size(number: int) -> str:
    """Bytes as people and `policy.yaml` write them: `16G`, `500M`."""
    unit = next((unit for unit in "TG" if number % UNITS[unit] == 0), "M")
    return f"{number // UNITS[unit]}{unit}"


def spans(hours: Iterable[Tuple[int, int]]) -> str:
    """Hours as people write them: `20:00-06:00`."""
    return ", ".join(f"{b // 60:02d}:{b % 60:02d}-{e // 60:02d}:{e % 60:02d}" for b, e in hours)


def _leaving(leave: Leave) -> List[str]:
    only, kept = leave.tensors.only, leave.tensors.kept
    tensors = f"the tensors {_and(only)}" if only else "the tensors of a model"
    but = f", but not {_and(kept)}" if kept else ""
    metrics = "all metrics" if leave.metrics is None else f"the metrics {_and(leave.metrics)}" if leave.metrics else ""
    logs = (
        "Logs of trainings and the texts of errors leave this machine: they may quote data."
        if leave.logs
        else "No log leaves this machine, and of an error its kind and its line in the code."
    )
    return [
        f"Of what a training makes, {tensors} may leave{but}{'; and ' + metrics if metrics else ', no metric'}.",
        logs,
    ]


def _secure(policy: Policy) -> List[str]:
    terms = policy.secure_aggregation
    if terms.required:
        return [f"Updates leave masked: what the coordinator can read is the sum of {terms.least} nodes or more."]
    return [f"Updates may leave unmasked; a sum of masked ones is of {terms.least} nodes or more."]


def _private(terms: DifferentialPrivacy | None) -> List[str]:
    if terms is None:
        return ["Updates may leave without noise."]
    places = " or ".join(_PLACES[mode] for mode in terms.modes)
    spent = f"all trainings together spend at most ε = {terms.epsilon:g}"
    return [f"Noise is added {places}; {spent} (δ = {terms.delta:g})."]


def _when(policy: Policy) -> List[str]:
    if not policy.hours and not policy.days:
        return ["Tasks begin at any time."]
    days = ", ".join(WEEK[day] for day in policy.days)
    parts = [*([f"within {spans(policy.hours)}"] if policy.hours else []), *([f"on {days}"] if days else [])]
    return [f"Tasks begin {' '.join(parts)}, by this machine's clock."]


def _limited(limits: Limits) -> List[str]:
    found = []
    if limits.cpus is not None:
        found.append(f"Training uses at most {limits.cpus} processor{'s' if limits.cpus > 1 else ''}.")
    if limits.memory is not None:
        found.append(f"A training process has at most {size(limits.memory)} of memory.")
    if limits.gpus is not None:
        found.append(
            f"Of GPUs training sees {_and([str(gpu) for gpu in limits.gpus])}." if limits.gpus else "No GPU is used."
        )
    if limits.disk is not None:
        found.append(f"What this key keeps here is at most {size(limits.disk)}.")
    return found


def _open(policy: Policy) -> List[str]:
    if policy.files == "any":
        return ["Training code may open every file that this account may."]
    data = f", {_and(policy.data.paths)}" if policy.data.paths else ""
    return [f"Training code may open its own files{data} and the system's programs, and no other file of this account."]


def _of(values: Sequence[str], sentence: str) -> List[str]:
    return [sentence.format(_and(values))] if values else []


def _and(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} and {values[-1]}"
