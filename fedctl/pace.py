"""How fast a line may be used: a `Bandwidth` that all lines to one machine share, with a `Pace` for each way.

The coordinator alone keeps it. What it sends waits here, and what a node is to send waits as well: a node sends bodies
only when it is asked for them.
"""

import math
import threading
import time
from collections.abc import Callable

from fedctl.node.agent import BLOCK

LEAST_BLOCK = 2**12
BLOCK_S = 0.125
"""How long a block takes on a line at its limit: what is small waits for one at most."""
LONGEST_DEBT_S = 1.0
"""How far what cannot be put off may go ahead of the limit; beyond that models would never get their turn."""


class Pace:
    """Bytes on their way over a line, one after the other, at so many bytes a second.

    Nothing is saved up while the line is idle: N bytes take N / `rate` seconds whenever they are sent.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._free_at = clock()
        self._booking = threading.Lock()

    def book(self, size: int) -> float:
        """Take the next turn for so many bytes; returns the seconds to wait until they may be through."""
        with self._booking:
            now = self._clock()
            self._free_at = max(self._free_at, now) + size / self._rate
            return self._free_at - now

    def count(self, size: int) -> None:
        """Count what does not wait; the others wait for it."""
        with self._booking:
            now = self._clock()
            most = max(self._free_at, now + LONGEST_DEBT_S)
            self._free_at = min(max(self._free_at, now) + size / self._rate, most)


class Bandwidth:
    """What fedctl may use of a machine's line each way, in bits a second; `block` is how many bytes to send at once."""

    def __init__(self, bps: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self.sending = Pace(bps / 8, clock)
        self.receiving = Pace(bps / 8, clock)
        self.block = int(max(LEAST_BLOCK, min(BLOCK, bps / 8 * BLOCK_S)))

    def book(self, *, sent: int, received: int) -> float:
        """Take the next turns for a request's body and for its answer's; returns the seconds to wait."""
        return max(
            pace.book(size) if size else 0.0 for pace, size in ((self.sending, sent), (self.receiving, received))
        )
