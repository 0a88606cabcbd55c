"""How much an agent may send that nobody asked for: one that floods its line takes neither memory nor time for long."""

import time

from fedctl.errors import ProtocolError

MOST_AT_ONCE = 64 * 2**20
MOST_A_SECOND = 4 * 2**20
"""In bytes; what hundreds of tasks have to tell is far below."""
LEAST_COUNTED = 2**10
"""What a push counts at least, because the reading of a small one takes its time too."""


class Allowance:
    """How many bytes may come: `most` at once, and as these are used up, so many more `a_second`."""

    def __init__(self, most: int = MOST_AT_ONCE, a_second: int = MOST_A_SECOND) -> None:
        self._most = most
        self._a_second = a_second
        self._left = float(most)
        self._at = time.monotonic()

    def take(self, size: int) -> None:
        """Count a push of `size` bytes; raises ProtocolError where there is no room for it."""
        now = time.monotonic()
        gained = (now - self._at) * self._a_second
        self._left, self._at = min(self._most, self._left + gained) - max(size, LEAST_COUNTED), now
        if self._left < 0:
            raise ProtocolError(f"the agent floods the line: {self._most >> 20} MB came that nobody had asked for")
