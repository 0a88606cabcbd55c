"""What reaches the coordinator's own thread: every fact, in order, and of telemetry the newest."""

import threading
import time
from datetime import UTC, datetime

from fedctl.events import TaskFailed, TaskStarted, UpdateReceived
from fedctl.inbox import BEAT_S, Inbox
from fedctl.records import Blob, Progress, TaskKey
from fedctl.telemetry import Preparing

ALICE, BOB = TaskKey(round=1, node="alice"), TaskKey(round=1, node="bob")
AT = datetime(2026, 1, 1, tzinfo=UTC)


def at_step(step, key=ALICE):
    return Progress(key=key, phase="training", step=step)


def test_facts_come_in_their_order():
    inbox = Inbox()
    for fact in range(5):
        inbox.put(fact)
    assert inbox.take(0.0) == [0, 1, 2, 3, 4]
    assert inbox.take(0.0) == []


def test_a_task_has_one_answer():
    """One that is stopped may come to its end, or to its update, at the same moment."""
    inbox, update = Inbox(), Blob(digest="0" * 64, size=1)
    stopped = TaskFailed(at=AT, task=ALICE, reason="the round was closed without it", retryable=False)
    inbox.put(stopped)
    inbox.put(TaskFailed(at=AT, task=ALICE, reason="cancelled", retryable=False))
    inbox.put(UpdateReceived(at=AT, task=ALICE, update=update, examples=1, metrics={}, seconds=1.0))
    other = TaskFailed(at=AT, task=BOB, reason="out of memory", retryable=True)
    inbox.put(other)
    assert inbox.take(0.0) == [stopped, other]


def test_of_each_task_and_node_only_the_newest_sample_waits():
    inbox = Inbox()
    for step in range(1000):
        inbox.tell(at_step(step))
        inbox.tell(at_step(step, BOB))
        inbox.tell(Preparing(node="carol", text=f"line {step}"))
    assert inbox.take(1.0) == [at_step(999), at_step(999, BOB), Preparing(node="carol", text="line 999")]


def test_a_flood_of_samples_comes_out_a_few_a_second():
    inbox, taken = Inbox(), []
    ends = time.monotonic() + 5 * BEAT_S
    began = time.monotonic()
    while time.monotonic() < ends:
        inbox.tell(at_step(0))
        taken += inbox.take(0.0)
    assert 1 <= len(taken) <= 2 + (time.monotonic() - began) / BEAT_S


def test_a_fact_does_not_wait_for_the_beat_and_comes_after_what_its_task_told_before():
    inbox = Inbox()
    inbox.tell(at_step(1))
    assert inbox.take(1.0) == [at_step(1)]
    inbox.tell(at_step(2))
    inbox.tell(at_step(1, BOB))
    inbox.put(TaskStarted(at=AT, task=ALICE))
    assert inbox.take(0.0)[:2] == [at_step(2), TaskStarted(at=AT, task=ALICE)]


def test_who_waits_is_woken_by_another_thread():
    inbox = Inbox()
    threading.Timer(0.05, inbox.put, ["news"]).start()
    assert inbox.take(30.0) == ["news"]
    threading.Timer(0.05, inbox.tell, [at_step(1)]).start()
    assert inbox.take(30.0) == [at_step(1)]
