"""What is done to a run, and when: a script of faults, at most one a round, written down or drawn from a seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

COORDINATOR = "coordinator"
NODES = ("alice", "bob", "carol")
TRAINING = "training"
"""In place of an event: the node's own process has taken up the round's training."""


@dataclass(frozen=True, slots=True)
class When:
    """Once the journal has an event of that kind in that round (0: before the first), and `delay_s` later."""

    round: int
    event: str
    delay_s: float = 0.0

    def __str__(self) -> str:
        later = f"{1000 * self.delay_s:.0f} ms after " if self.delay_s else "at "
        return f"round {self.round}, {later}{self.event}"


@dataclass(frozen=True, slots=True)
class Fault:
    """One blow: to the coordinator or a node, of a kind that the storm knows; those that last do so for `seconds`."""

    who: str
    when: When
    what: str
    seconds: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.who}: {self.what}{lasting} ({self.when})"


LONGER_THAN_SILENCE_S = 5.0
"""After so long a line on which nothing passes has been found dead, with the keepalives of a storm."""

BEFORE_THE_FIRST_ROUND = ("RunStarted", "NodeReady", "TaskStarted", "ModelInitialized")
IN_A_ROUND = ("RoundOpened", "TaskStarted", "ModelEvaluated", "UpdateReceived", "RoundAggregated")
BETWEEN_S = (0.02, 0.06, 0.15)

ON_NODES = {
    "kill the agent": 0.0,
    "kill the sessions": 0.0,
    "kill the child": 0.0,
    "kill the worker": 0.0,
    "reboot": 0.0,
    "fill the disk": 0.0,
    "freeze the child": 1.0,
    "freeze the worker": 1.0,
    "stop the server": 2.0,
    "reset the line": 0.0,
    "cut the line": LONGER_THAN_SILENCE_S,
    "cut the line shortly": 0.5,
    "slow the line": 3.0,
}
"""What may befall a node, and for how long."""
ON_THE_COORDINATOR = {"kill": 0.0, "kill and tear": 0.0, "freeze": 1.0}


def every_fault() -> list[Fault]:
    """Each kind once, and the coordinator killed at each kind of event, between them, and once all is done."""
    script = [Fault(COORDINATOR, When(0, event), "kill") for event in BEFORE_THE_FIRST_ROUND]
    whats = [(COORDINATOR, event, 0.0, "kill", 0.0) for event in IN_A_ROUND]
    whats += [(COORDINATOR, "TaskStarted", delay_s, "kill and tear", 0.0) for delay_s in BETWEEN_S]
    whats += [(COORDINATOR, "TaskStarted", 0.0, "freeze", 3.0)]
    whats += [(NODES[i % 3], TRAINING, 0.05, what, seconds) for i, (what, seconds) in enumerate(ON_NODES.items())]
    for number, (who, event, delay_s, what, seconds) in enumerate(whats, start=1):
        script.append(Fault(who, When(number, event, delay_s), what, seconds))
    return [*script, Fault(COORDINATOR, When(len(whats), "RunFinished"), "kill")]


def drawn(seed: int, rounds: int) -> list[Fault]:
    """A fault in each of so many rounds, at any moment of it."""
    dice = random.Random(seed)
    return [_draw(dice, number) for number in range(1, rounds + 1)]


def _draw(dice: random.Random, number: int) -> Fault:
    who = dice.choice((COORDINATOR, *NODES))
    kinds = ON_THE_COORDINATOR if who == COORDINATOR else ON_NODES
    what = dice.choice(list(kinds))
    events: Sequence[str] = IN_A_ROUND if who == COORDINATOR else (TRAINING, *IN_A_ROUND[:-1])
    when = When(number, dice.choice(events), round(dice.uniform(0, 0.4), 3))
    return Fault(who, when, what, round(kinds[what] * dice.uniform(0.5, 1.5), 2))
