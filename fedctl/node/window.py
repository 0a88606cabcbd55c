"""When a task has to end before its own end: its time is over, or its node's owner wants the machine back."""

import math
import time

from fedctl.errors import Declined
from fedctl.node.agent import Refused, judge
from fedctl.records import Task

ASK_AGAIN_S = 30.0
"""The owner's command is run again after that long; the clock is looked at each time."""


class Window:
    """The time that a task has, from now on."""

    def __init__(self, task: Task) -> None:
        self._when = task.when
        self._ends_at = time.monotonic() + (math.inf if task.seconds is None else task.seconds)
        self._ask_at = 0.0

    @property
    def is_over(self) -> bool:
        """Whether the task's own seconds are over."""
        return time.monotonic() >= self._ends_at

    def closed(self) -> Declined | None:
        """Why the node is not to be used any more; None while it may be."""
        if not self._when:
            return None
        is_due = time.monotonic() >= self._ask_at
        try:
            verdict = judge(dict(self._when) if is_due else {**self._when, "command": []}, is_alone=False)
        except Refused as refusal:
            return Declined(str(refusal), seconds=0.0)
        if is_due:
            self._ask_at = time.monotonic() + ASK_AGAIN_S
        return None if verdict["may"] else Declined(verdict["why"], seconds=verdict["seconds"])
