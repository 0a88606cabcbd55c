"""Rounds whose updates are masked: in steps, each asked of those that have done the one before.

Pure, as `plan` is, whose part it is. The nodes tell their keys; hand out shares of their secrets; train, and mask what
they send; sign whose updates the sum is of; and give the shares that take the masks off that sum. Who has done a step
is journalled once and stands, whatever comes later or again.
"""

from datetime import datetime
from functools import lru_cache

from fedctl import fleet, sampling
from fedctl.actions import Action, Aggregate, CloseStep, GiveUp, Hold
from fedctl.asking import base_of, few, in_time, is_awaited, left_of, left_s, tasks
from fedctl.federation import Federation
from fedctl.privacy import SecureAggregation
from fedctl.records import Kind
from fedctl.roundstate import STEPS
from fedctl.runstate import Failed, Received, RoundState, RunState, Said
from fedctl.sampling import LEAST_MASKED
from fedctl.secagg.graph import COMPLETE, degree_for, fewest, threshold_for

__all__ = ["STEPS", "asked", "degree_of", "go_on", "quorum"]


def go_on(state: RunState, opened: RoundState, federation: Federation, now: datetime, *, hold: bool) -> list[Action]:
    """What the round's step asks for, or the next one; the first where an update that the sum is of was lost since."""
    lost, step = opened.lost, opened.step
    if step is None:
        raise AssertionError("asked for the step of a round that has none")
    names = asked(opened, step)
    late = _is_late(state, opened, federation, now, step)
    answers = state.answers(step, opened.number)
    done = tuple(sorted(name for name in names if isinstance(answers.get(name), Said | Received)))
    is_full = step == "train" and not lost and len(done) >= opened.wanted
    if len(done) < len(names) and not is_full:
        waiting = tasks(
            state,
            federation,
            step,
            opened.number,
            base_of(state) if step == "train" else {},
            late=late,
            nodes=names,
            seconds=in_time(federation, _left_s(state, opened, federation, now)) if step == "train" else None,
            overdue=f"it did not answer in the time of the step `{step}`",
        )
        if waiting or (not late and is_awaited(state, answers, names, federation, now)):
            return waiting
    least = _least(opened, federation, step)
    if len(done) < least:
        return [_too_few(state, opened, step, len(done), least)]
    if step != "unmask":
        return [CloseStep(round=opened.number, step=step, nodes=done)]
    if hold:
        return [Hold(round=opened.number)]
    return [Aggregate(round=opened.number, contributors=opened.steps["train"])]


def quorum(federation: Federation, cohort: int) -> int:
    """How many of a cohort a round cannot do without: for a model, and for every secret to be brought back."""
    return max(fleet.quorum(federation), _all_told(federation, cohort), sampling.least(federation))


def asked(opened: RoundState, step: Kind) -> tuple[str, ...]:
    """The nodes that a step asks; after the training was closed, no other may train for the round."""
    if step in opened.steps:
        return opened.steps[step]
    before = STEPS.index(step) - 1
    return opened.nodes if before < 0 else opened.steps[STEPS[before]]


def degree_of(secure: SecureAggregation, cohort: int) -> int:
    """How many neighbours each node has: all the others in a cohort of up to 32, else as wanted and accepted."""
    if cohort <= COMPLETE:
        return cohort - 1
    wanted = secure.neighbours or degree_for(cohort, secure.threshold)
    accepted = max(wanted, fewest(cohort))
    return min(cohort - 1, accepted + accepted % 2)


@lru_cache(maxsize=16)
def _telling(secure: SecureAggregation, cohort: int) -> int:
    """How many of a cohort can bring back every secret of it, if they are spread evenly: as `Cohort.quorum`."""
    holders = degree_of(secure, cohort) + 1
    return -(-threshold_for(secure.threshold, holders) * cohort // holders)


def _all_told(federation: Federation, cohort: int) -> int:
    """The same of a federation; nobody has to tell where nothing is masked, or no cohort is known yet."""
    secure = federation.privacy.secure_aggregation
    return _telling(secure, cohort) if secure and cohort else 0


def _least(opened: RoundState, federation: Federation, step: Kind) -> int:
    """How many must do a step: enough for a model, and for every secret of the cohort to be brought back."""
    if step in opened.steps:  # the sum is of these: others would have to sign anew, and nobody signs twice
        return len(opened.steps[step])
    telling = _all_told(federation, len(opened.steps.get("keys", ())))
    return telling if step in ("agree", "unmask") else max(opened.quorum, telling, LEAST_MASKED)


def _is_late(state: RunState, opened: RoundState, federation: Federation, now: datetime, step: Kind) -> bool:
    left = _left_s(state, opened, federation, now) if step == "train" else _patience_s(state, opened, federation, now)
    return left is not None and left <= 0


def _left_s(state: RunState, opened: RoundState, federation: Federation, now: datetime) -> float | None:
    """Seconds to the deadline of the training, which counts from when it was asked for."""
    return left_s(state, federation, opened.step_at or opened.opened_at, now)


def _patience_s(state: RunState, opened: RoundState, federation: Federation, now: datetime) -> float:
    """Seconds that are left for one of the other steps; a resume gives some more."""
    secure = federation.privacy.secure_aggregation
    patience_s = secure.patience_s if secure else 0.0
    return left_of(patience_s, state, opened.step_at or opened.opened_at, now)


def _too_few(state: RunState, opened: RoundState, step: Kind, have: int, least: int) -> GiveUp:
    answers = state.answers(step, opened.number)
    absent = []
    for name in asked(opened, step):
        answer, node = answers.get(name), state.nodes.get(name)
        if not isinstance(answer, Said | Received):
            reason = answer.reason if isinstance(answer, Failed) else node and node.error
            absent.append(f"{name}: {reason or 'it gave no answer'}")
    return GiveUp(
        reason=f"round {opened.number} has {have} of the {least} nodes that its step `{step}` needs ({few(absent)})"
    )
