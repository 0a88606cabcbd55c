"""The line to a host's agent: made when it is needed, renewed when it broke, waited for as long as that makes sense."""

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from fedctl.connection import Connection
from fedctl.errors import ConnectionLost, NodeError, Unreachable

RECONNECTS = 6
RETRIES = 3
"""How often a line that breaks is made anew before the run is told that the node is lost, and looks for it itself."""
STEADY_S = 60.0
"""How long a line has to hold for a break of it to be the first one."""
LONGEST_REST_S = 15.0

Answer = TypeVar("Answer")


class Lifeline:
    """One connection at a time, shared by all threads that have something to say to the host."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._connecting = threading.Lock()
        self._connection: Connection | None = None
        self._tries = 0
        self._failure: NodeError | None = None
        self._closed = threading.Event()

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def connection(self) -> Connection:
        """The line as it is, or a new one; raises NodeError. Whoever waits while another fails has failed too."""
        tries = self._tries
        with self._connecting:
            if self.is_closed:
                raise NodeError("the host was closed")
            if self._connection is not None and not self._connection.is_lost:
                return self._connection
            if self._failure is not None and self._tries != tries:
                raise self._failure
            try:
                self._connection, self._failure = self._connect(), None
            except NodeError as error:
                self._failure = error
                raise
            finally:
                self._tries += 1
            if self._closed.is_set():  # while it was being made
                self._connection.close()
            return self._connection

    def patiently(
        self,
        attempt: Callable[[], Answer],
        *,
        tries: int,
        is_wanted: Callable[[], bool] = lambda: True,
        broke: Callable[[], None] = lambda: None,
    ) -> Answer:
        """What an attempt gives, made again over a new line when one breaks, while it is wanted; `broke` hears of it.

        At most so many `tries` in a row, and one alone for a host that was never reached. Raises ConnectionLost.
        """
        retry = 0
        while True:
            began = time.monotonic()
            try:
                return attempt()
            except ConnectionLost as error:
                is_new = isinstance(error, Unreachable) and self._connection is None
                # A server that answers and then hangs up was asked for half a minute already.
                is_final = isinstance(error, Unreachable) and error.stage == "greeting"
                retry = 1 if time.monotonic() - began > STEADY_S else retry + 1
                if self.is_closed or not is_wanted() or retry >= tries or is_new or is_final:
                    raise
            broke()
            self._closed.wait(min(LONGEST_REST_S, 0.1 * 2**retry) * random.uniform(0.5, 1.0))

    def close(self) -> None:
        """Close the line; what runs on the host goes on."""
        self._closed.set()
        if self._connection:
            self._connection.close()
