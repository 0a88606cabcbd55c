"""Who of a federation's nodes may be asked, who is waited for, and when a node that went away is looked for again.

Pure, as `plan` is, whose questions it answers: no clock, nothing remembered.
"""

import math
import random
from collections.abc import Iterable
from datetime import datetime, timedelta

from fedctl import sampling
from fedctl.federation import Federation, needed
from fedctl.runstate import NodeState, RunState

SOONEST_S, LATEST_S = 2.0, 300.0
"""Between these a node that is lost is looked for again, each time after half as long again as it has been lost."""
LONGEST_WORD_S = 3600.0
"""An owner's "not for so long" is asked about again at least so often: it may have changed."""
LONGEST_REST = 16
"""The most rounds that a node rests which failed in round after round."""


def wanted(federation: Federation) -> int:
    """How many updates a round takes."""
    schedule = federation.schedule
    return needed(schedule.cohort if schedule.buffer is None else schedule.buffer, len(federation.nodes))


def quorum(federation: Federation) -> int:
    """How many updates a round cannot close without."""
    if sampling.is_by_coin(federation):
        return sampling.least(federation)
    return needed(federation.schedule.quorum, wanted(federation))


def ready(state: RunState) -> list[str]:
    """The nodes that can be given a task now."""
    return [name for name, node in state.nodes.items() if node.status == "ready"]


def is_expected(node: NodeState, federation: Federation, now: datetime) -> bool:
    """Whether a node is waited for: it is being made ready, or may come back."""
    return node.status == "new" or may_return(node, federation.schedule.patience_s, now)


def may_return(node: NodeState, patience_s: float | None, now: datetime) -> bool:
    """Whether a lost node is waited for: it was here in this run, may come back by itself, and patience goes on."""
    if node.status != "lost" or not node.was_ready or not node.passing:
        return False
    end = given_up_at(node, patience_s)
    return end is None or now < end


def given_up_at(node: NodeState, patience_s: float | None) -> datetime | None:
    """When patience with a node ends, counted from the beginning of its trouble; None where it never does."""
    if patience_s is None or node.trouble_at is None:
        return None
    return node.trouble_at + timedelta(seconds=patience_s)


def is_due(node: NodeState, seed: int, now: datetime) -> bool:
    """Whether a node is to be made ready now: it is new, or has been away for long enough to be looked for again."""
    if node.status == "new":
        return True
    return node.status != "ready" and now >= looked_for_at(node, seed)


def looked_for_at(node: NodeState, seed: int) -> datetime:
    """When a node that is away is looked for again: ever more rarely, and not before the time that its owner named."""
    if node.asked_at is None:
        raise AssertionError(f"node {node.name} was never found to be away")
    named_s = min(LONGEST_WORD_S, node.ask_again_s) if node.status == "away" else 0.0
    spell_s = (node.asked_at - (node.trouble_at or node.asked_at)).total_seconds()
    jitter = random.Random(f"{seed}/{node.name}/{node.asked_at}").uniform(0.75, 1.25)
    return node.asked_at + timedelta(seconds=max(named_s, min(LATEST_S, max(SOONEST_S, spell_s / 2 * jitter))))


def is_rested(node: NodeState, round: int) -> bool:
    """Whether a node may be asked in a round: one that failed in its last ones sits out ever more of them."""
    return not node.strikes or round >= node.struck + min(LONGEST_REST, 2 ** (node.strikes - 1))


def drawn(federation: Federation, round: int, among: Iterable[str]) -> list[str]:
    """These nodes in the order in which a round takes them, which follows from the seed and the round alone."""
    order = [node.name for node in federation.nodes]
    random.Random(f"{federation.seed}/{round}").shuffle(order)
    there = set(among)
    return [name for name in order if name in there]


def _is_here(node: NodeState, federation: Federation, now: datetime) -> bool:
    return not node.barred and (node.status == "ready" or is_expected(node, federation, now))


def cohort(federation: Federation, round: int, state: RunState, now: datetime) -> tuple[str, ...]:
    """The nodes of a round, in the order of names: of those that are here or waited for, as many as are to be asked.

    Fewer than the quorum where there are no more; those that rest are asked before the quorum is missed.
    """
    here = [name for name, node in state.nodes.items() if _is_here(node, federation, now)]
    if sampling.is_by_coin(federation):
        return sampling.drawn(federation, round, state.draw, here)
    asked = math.ceil(wanted(federation) * federation.schedule.overprovision - 1e-9)
    rested = [name for name in here if is_rested(state.nodes[name], round)]
    first = drawn(federation, round, rested)[:asked]
    if len(first) < quorum(federation):
        first = drawn(federation, round, here)[: quorum(federation)]
    return tuple(sorted(first))
