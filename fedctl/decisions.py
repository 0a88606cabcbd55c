"""Actions that are done once they are decided: the event that each of them is.

Pure.
"""

from dataclasses import asdict
from datetime import datetime
from typing import assert_never

from fedctl.actions import CloseStep, Finish, GiveUp, Hold, OpenRound, WidenRound
from fedctl.events import Event, RoundHeld, RoundOpened, RoundWidened, RunFailed, RunFinished, StepClosed


def decided(action: OpenRound | WidenRound | CloseStep | Hold | Finish | GiveUp, at: datetime) -> Event:
    """What has happened by the decision alone."""
    match action:
        case OpenRound():
            return RoundOpened(at=at, **asdict(action))
        case WidenRound():
            return RoundWidened(at=at, round=action.round, nodes=action.nodes)
        case CloseStep():
            return StepClosed(at=at, **asdict(action))
        case Hold():
            return RoundHeld(at=at, round=action.round)
        case Finish():
            return RunFinished(at=at, reason=action.reason)
        case GiveUp():
            return RunFailed(at=at, reason=action.reason)
        case _:
            assert_never(action)
