"""What the threads of actions have for the coordinator's own: every fact, and of telemetry the newest.

However much a node tells, at most one sample of a task waits here, and a few a second come out. A task has one answer:
of one that was stopped and came to its end at the same moment, the answer that came first.
"""

import threading
import time
from collections import deque
from typing import Any

from fedctl.events import ModelEvaluated, TaskFailed, UpdateReceived
from fedctl.records import TaskKey
from fedctl.telemetry import Preparing, Telemetry

BEAT_S = 0.1
"""The shortest time between two samples of the same task."""


class Inbox:
    """Any thread puts and tells; one takes."""

    def __init__(self) -> None:
        self._facts: deque[Any] = deque()
        self._answered: set[TaskKey] = set()
        self._newest: dict[str, Telemetry] = {}
        self._next_beat = time.monotonic()
        self._changed = threading.Condition()

    def put(self, fact: Any) -> None:
        """Leave what must not be lost, and before it what its task told last."""
        with self._changed:
            if isinstance(fact, UpdateReceived | ModelEvaluated | TaskFailed):
                if fact.task in self._answered:
                    return
                self._answered.add(fact.task)
            told = self._newest.pop(str(getattr(fact, "task", "")), None)
            self._facts.extend(item for item in (told, fact) if item is not None)
            self._changed.notify()

    def tell(self, sample: Telemetry) -> None:
        """Leave a sample in the place of an older one that nobody has taken."""
        name = sample.node if isinstance(sample, Preparing) else str(sample.key)
        with self._changed:
            if name not in self._newest:
                self._changed.notify()
            self._newest[name] = sample

    def take(self, timeout_s: float) -> list[Any]:
        """All facts, and the samples whose time has come; waits for the first of them, so many seconds at most."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._facts:
                now = time.monotonic()
                until = min(deadline, self._next_beat) if self._newest else deadline
                if now >= until:
                    break
                self._changed.wait(until - now)
            taken = list(self._facts)
            self._facts.clear()
            now = time.monotonic()
            if now >= self._next_beat and self._newest:
                taken.extend(self._newest.values())
                self._newest.clear()
                self._next_beat = now + BEAT_S
            return taken
