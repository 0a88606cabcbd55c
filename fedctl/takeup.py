"""What a coordinator books before anything else: that it has taken up the run, and what the disk has lost of it.

Updates are not synced one by one as they come, since thousands of nodes may hand one in; a power cut may take some. So
they are looked at here, and the nodes, which keep an update until its round is aggregated, are asked for them again.
"""

import secrets
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from fedctl.durable import is_there
from fedctl.events import RunStarted, UpdateLost
from fedctl.federation import Federation
from fedctl.records import TaskKey
from fedctl.rundir import RunDir
from fedctl.runstate import Received, RunState


def started(run: RunDir, state: RunState, federation: Federation, seen_at: datetime | None, at: datetime) -> RunStarted:
    """A coordinator takes up the run; the one before gave its last sign of life at `seen_at`."""
    dp = federation.privacy.differential_privacy
    return RunStarted(
        at=at,
        run=run.name,
        federation=federation.name,
        seed=federation.seed,
        rounds=federation.rounds,
        nodes=tuple(node.name for node in federation.nodes),
        compare=federation.compare,
        metric=federation.task.monitor.metric,
        mode=federation.task.monitor.mode,
        absent_s=_absent_s(state, seen_at, at),
        patience_s=federation.schedule.patience_s,
        draw=state.draw or secrets.randbits(62),
        masked=federation.privacy.is_secure,
        noise=dp.mode if dp else "",
        delta=dp.delta if dp else None,
        budget=dp.epsilon if dp else None,
    )


def updates_lost(run: RunDir, state: RunState, at: datetime) -> list[UpdateLost]:
    """One for each update that counts and is not on the disk as it came."""
    reason = "its update is no longer on the coordinator's disk as it came"
    return [UpdateLost(at=at, task=key, reason=reason) for key in damaged(run, state)]


def damaged(run: RunDir, state: RunState) -> list[TaskKey]:
    """The tasks whose updates are not on the disk as they came, of the open round, the next and of nodes alone."""
    answers = [*(state.open.answers if state.open else {}).values(), *state.carried.values(), *state.alone.values()]
    received = [answer for answer in answers if isinstance(answer, Received)]
    with ThreadPoolExecutor() as pool:
        whole = pool.map(lambda answer: is_there(run.answer(answer.key), answer.update), received)
        return [answer.key for answer, is_whole in zip(received, whole, strict=True) if not is_whole]


def _absent_s(state: RunState, seen_at: datetime | None, at: datetime) -> float:
    """Seconds without a coordinator; a sign of life by a clock that is ahead of this one's tells nothing."""
    if state.last_at is None:
        return 0.0
    since = seen_at if seen_at and state.last_at < seen_at <= at else state.last_at
    return max(0.0, (at - since).total_seconds())
