"""What comes from an agent: what a login shell printed before it, its greeting, and then frame after frame."""

import time
from typing import Any

from fedctl.errors import ProtocolError
from fedctl.node import agent
from fedctl.strictjson import printable
from fedctl.transports import Process

PIECE = 2**18
"""What a slow line carries within any patience, and a fast one as fast as more at once."""
LONGEST_NOISE = 2**20
NOISE_KEPT = 500


class Incoming:
    """Reads a process's stdout, in one thread.

    `came` is the size of the newest frame, and `at` when a large one last grew (seconds, monotonic).
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._heard = bytearray()
        self.is_greeted = False
        self.came = 0
        self.at = time.monotonic()

    @property
    def noise(self) -> str:
        """The beginning of what was printed before the agent came; empty when nothing was."""
        said = self._heard.removesuffix(agent.GREETING)[: 4 * NOISE_KEPT].decode(errors="replace")
        return "\n".join(printable(line) for line in said.splitlines())[:NOISE_KEPT].strip()

    def await_greeting(self) -> None:
        """Skip what a login shell may print; raises ValueError where it does not end."""
        while not self._heard.endswith(agent.GREETING):
            byte = self._process.read(1)
            if not byte:
                return
            self._heard += byte
            if len(self._heard) > LONGEST_NOISE:
                raise ValueError("whatever answers there is no agent")
        self.is_greeted = True

    def frame(self) -> tuple[dict[str, Any], bytes] | None:
        """The next frame, None at the end; raises agent.CutOff, and ProtocolError for what is none."""
        self.came = 0
        try:
            return agent.read_frame(self._take)
        except agent.CutOff:
            raise
        except ValueError as error:
            raise ProtocolError(f"the agent breaks the protocol: {error}") from error

    def _take(self, size: int) -> bytes:
        """Exactly `size` bytes, or fewer at the end."""
        pieces: list[bytes] = []
        while missing := size - sum(map(len, pieces)):
            pieces.append(self._process.read(min(missing, PIECE)))
            self.came += len(pieces[-1])
            if len(pieces[-1]) < min(missing, PIECE):
                break
            if size > PIECE:
                self.at = time.monotonic()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
