"""What nodes may forget once a round is closed: updates that are safe here, models that nobody starts from. Pure."""

from collections.abc import Iterable

from fedctl.records import Blob, TaskKey
from fedctl.runstate import RoundReport, RunState


def models(state: RunState, lag: int) -> set[str]:
    """Digests of models before the newest, but for those that trainings go on with or a difference leads on from.

    Some of the last rounds' are named again, for a killed coordinator may have left them; `lag` is as in `Schedule`.
    """
    newest = state.history[-1]
    needed = [state.model_of(asked.key.round - 1) for asked in state.pending.values()]
    spared = {blob.digest for blob in (newest.model, newest.memory, state.previous, *needed) if blob}
    before = state.history[-3 - lag : -1]
    return {blob.digest for report in before for blob in _of(report)} - spared


def _of(report: RoundReport) -> list[Blob]:
    return [blob for blob in (report.model, report.memory, report.difference) if blob]


def updates(state: RunState, came: Iterable[TaskKey]) -> list[TaskKey]:
    """Those of the trainings whose update came that wait for no further round: a power cut may take what does."""
    waiting = {update.key for update in state.carried.values()}
    return [key for key in came if key not in waiting]
