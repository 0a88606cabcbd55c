"""The shell around the plan: what is planned is put in flight, what happens is journalled, folded and planned upon.

One thread, the coordinator's own, journals and folds; the threads of actions put events into its inbox. Nothing here
decides anything: `plan` does, from the state alone. Nothing here shows anything: the sinks are told.
"""

import importlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, assert_never

from fedctl import staleness, takeup, tidying
from fedctl.actions import Action, Aggregate, Cancel, Finish, Perform, Prepare
from fedctl.clock import Clock, no_earlier, steady
from fedctl.codecs.pipeline import Ways
from fedctl.decisions import decided
from fedctl.demands import unmet
from fedctl.errors import ConnectionLost, FedctlError, ModelError, NodeError, RunError
from fedctl.events import (
    Event,
    ModelInitialized,
    NodeReady,
    RoundAbandoned,
    RoundAggregated,
    RunFailed,
    TaskFailed,
    TaskStarted,
    UpdateReceived,
)
from fedctl.federation import Federation
from fedctl.hosts import Hosts
from fedctl.inbox import Inbox
from fedctl.jobs import lost, perform
from fedctl.journal import Journal
from fedctl.lease import Lease
from fedctl.plan import plan
from fedctl.records import Progress, TaskKey
from fedctl.rounds import close_round
from fedctl.rundir import RunDir
from fedctl.state import RunState, apply, fold
from fedctl.strategies import Strategy, needs_steps, uses_controls
from fedctl.telemetry import Preparing, Telemetry

MOST_IN_FLIGHT = 1024
TICK_S = 0.5


class Sink(Protocol):
    """Someone who is told: a dashboard, a file of metrics, a line an event."""

    def event(self, event: Event, state: RunState) -> None: ...

    def progress(self, progress: Telemetry) -> None: ...


@dataclass(frozen=True, slots=True)
class _Landed:
    """An action has come to its end, whatever its end was."""

    key: str


@dataclass(frozen=True, slots=True)
class _Broken:
    """An action raised what is no event: the run cannot go on, or there is a bug."""

    error: Exception


class Coordinator:
    """Runs one federation to its end, or to where it cannot go on."""

    def __init__(
        self,
        *,
        federation: Federation,
        run: RunDir,
        lease: Lease,
        hosts: Hosts,
        strategy: Strategy,
        ways: Ways | None = None,
        sinks: Sequence[Sink] = (),
        hold: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._federation = federation
        self._run = run
        self._lease = lease
        self._hosts = hosts
        self._strategy = strategy
        self._ways = ways or Ways()
        self._sinks = sinks
        self._hold = hold
        self._clock = clock or steady()
        self._inbox = Inbox()
        self._in_flight: set[str] = set()
        self._unreleased: list[TaskKey] = []
        self._state = RunState()

    def run(self) -> RunState:
        """Work until the run is over.

        Raises ConfigError when the user's code cannot be used, and Superseded when another coordinator took the run.
        """
        self._run.sweep()
        with Journal(self._run.journal, self._lease.check) as journal:
            self._state = fold(journal.events)
            self._book(journal, self._taken_up(journal.events))
            while not self._state.is_over:
                self._submit()
                self._book(journal, self._drain())
        return self._state

    def _submit(self) -> None:
        """Put in flight what is planned and is not; an action that changes nothing would come back at once for ever."""
        for action in plan(self._state, self._federation, self._clock(), hold=self._hold):
            is_full = len(self._in_flight) >= MOST_IN_FLIGHT and isinstance(action, Perform)
            if action.key not in self._in_flight and not is_full:
                self._in_flight.add(action.key)
                self._begin(action)

    def _begin(self, action: Action) -> None:
        if isinstance(action, Prepare | Perform | Cancel | Aggregate):
            threading.Thread(target=self._fly, args=(action,), name=action.key, daemon=True).start()
            return
        if isinstance(action, Finish):
            self._run.sync_alone()
        self._land(action, decided(action, self._clock()))

    def _fly(self, action: Prepare | Perform | Cancel | Aggregate) -> None:
        try:
            self._land(action, self._do(action))
        except Exception as error:  # handed to the coordinator's own thread, which raises it
            self._inbox.put(_Broken(error))

    def _do(self, action: Prepare | Perform | Cancel | Aggregate) -> Event:
        match action:
            case Prepare(node=node):
                try:
                    facts = self._hosts.of(node).prepare(
                        lambda text: self._inbox.tell(Preparing(node=node, text=text)),
                        when=self._federation.node(node).when,
                    )
                    if error := unmet(facts, self._federation.privacy):
                        return lost(node, error, self._clock())
                    return NodeReady(at=self._clock(), node=node, facts=facts)
                except NodeError as error:
                    return lost(node, error, self._clock())
            case Perform():
                return perform(
                    action,
                    federation=self._federation,
                    needs_steps=needs_steps(self._strategy),
                    controls=uses_controls(self._strategy),
                    up=self._ways.up,
                    host=self._hosts.of(action.task.node),
                    run=self._run,
                    clock=self._clock,
                    tell=self._inbox.put,
                    progressed=self._inbox.tell,
                )
            case Cancel():
                return self._cancel(action)
            case Aggregate():
                return self._aggregate(action)
            case _:
                assert_never(action)

    def _aggregate(self, action: Aggregate) -> Event:
        try:
            return close_round(
                self._run,
                self._state,
                contributors=action.contributors,
                strategy=self._strategy,
                federation=self._federation,
                down=self._ways.down,
                staleness=staleness.build(self._federation.schedule.staleness),
                at=self._clock,
            )
        except ModelError as error:
            return RunFailed(at=self._clock(), reason=f"round {action.round} cannot be aggregated: {error.message}")

    def _cancel(self, action: Cancel) -> Event:
        key, reason = action.task, action.reason
        try:
            self._hosts.of(key.node).cancel(key)
        except ConnectionLost as error:  # it is stopped when the node is back
            return lost(key.node, error, self._clock())
        except NodeError as error:
            reason += f"; it could not be cancelled: {error.message}"
        return TaskFailed(at=self._clock(), task=key, reason=reason, retryable=False)

    def _land(self, action: Action, event: Event) -> None:
        is_bare = isinstance(event, TaskFailed) and not event.detail
        if not (is_bare and f"cancel/{action.key}" in self._in_flight):  # else the cancelling says for what it failed
            self._inbox.put(event)
        self._inbox.put(_Landed(action.key))

    def _drain(self) -> list[Event]:
        """All that has come; waits for the first, but not past a tick, so that deadlines are seen."""
        events: list[Event] = []
        for item in self._inbox.take(TICK_S):
            match item:
                case Progress() | Preparing():
                    for sink in self._sinks:
                        sink.progress(item)
                case _Landed(key=key):
                    self._in_flight.discard(key)
                case _Broken(error=error):
                    raise error
                case _:
                    events.append(item)
        return events

    def _book(self, journal: Journal, events: Sequence[Event]) -> None:
        """On the disk first, then in the state, then shown, then acted upon."""
        if not events:
            return
        journal.append(events)
        for event in events:
            self._state = apply(self._state, event)
            for sink in self._sinks:
                sink.event(event, self._state)
            self._follow_up(event)

    def _follow_up(self, event: Event) -> None:
        """What needs no answer and changes no plan."""
        match event:
            case ModelInitialized():
                # The first update will need torch; importing it now hides its seconds behind the nodes' work.
                threading.Thread(target=importlib.import_module, args=("fedctl.weights",), daemon=True).start()
            case UpdateReceived(task=key):
                self._unreleased.append(key)
            case TaskStarted(task=key) if key.kind == "train" and not self._state.is_training(key):
                # It was on its way when its round was closed, or its time was over.
                self._in_background(partial(self._hosts.of(key.node).cancel, key))
            case TaskFailed(task=key) if event.detail:
                with self._run.log(key.node).open("a", encoding="utf-8") as log:
                    log.write(f"==> {key} <==\n{event.detail.rstrip()}\n")
            case RoundAggregated(round=number) | RoundAbandoned(round=number):
                self._run.noise(number).unlink(missing_ok=True)
                self._release()
            case _:
                pass

    def _release(self) -> None:
        """Once a round, one request a machine: the round's updates are here, models before the last are history."""
        digests = tidying.models(self._state, self._federation.schedule.lag)
        safe = tidying.updates(self._state, self._unreleased)
        for host in self._hosts.by_machine().values():
            keys = [key for key in safe if self._hosts.of(key.node) is host]
            if keys or digests:
                self._in_background(partial(host.release, keys, digests))
        self._unreleased = [key for key in self._unreleased if key not in safe]

    def _in_background(self, work: Callable[[], None]) -> None:
        def tolerant() -> None:
            try:
                work()
            except FedctlError:
                return  # tidying up a node that is away; `clean` does it in the end

        threading.Thread(target=tolerant, daemon=True).start()

    def _taken_up(self, before: Sequence[Event]) -> list[Event]:
        """What this coordinator finds where the one before left off."""
        if self._state.last_at:
            self._clock = no_earlier(self._clock, self._state.last_at)
        now = self._clock()
        self._run.noise(self._state.round).unlink(missing_ok=True)  # its coordinator may have died before it did
        started = takeup.started(self._run, self._state, self._federation, self._lease.seen_at, now)
        lost = takeup.updates_lost(self._run, self._state, now)
        gone = {event.task for event in lost}
        came = (event.task for event in before if isinstance(event, UpdateReceived))
        # Those of the round that was closed last, too: its coordinator may have died before it told the nodes.
        oldest = self._state.round - self._federation.schedule.lag
        self._unreleased = [key for key in came if key.round >= oldest and key not in gone]
        return [started, *lost]


def raise_if_failed(state: RunState) -> None:
    """Raises RunError for a run that gave up."""
    if state.status == "failed":
        has_lost = any(node.status == "lost" for node in state.nodes.values())
        look = "`fedctl check` says what each node needs; then " if has_lost else ""
        raise RunError(
            state.reason or "the run failed",
            hint=f"{look}`fedctl launch --resume {state.run}` tries again with the same code; changed code, or a "
            "changed fed.yaml, such as a lower `schedule.quorum`, needs a new `fedctl launch`",
        )
