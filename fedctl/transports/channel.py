"""A command on an SSH channel, as a `Process`."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

ERRORS_KEPT = 4000
LOST = 255
"""The status of a command whose end was not heard, as `ssh` has it."""
PIECE = 2**15
PACKET_ROOM = 64
DRAINED_S = 2.0


class ChannelProcess:
    """A command on paramiko's `channel`; `end` has the server kill it."""

    def __init__(self, channel: Any, end: Callable[[], None]) -> None:
        self._channel = channel
        self._end = end
        self._piece = channel.out_max_packet_size - PACKET_ROOM
        self._said = b""
        self._listener = threading.Thread(target=self._listen, name="stderr", daemon=True)
        self._listener.start()

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:  # by pieces that are packets: `sendall` copies the rest of its argument for each
                view = view[self._channel.send(view[: self._piece]) :]
        except OSError:
            raise
        except Exception as error:  # paramiko's own, and EOFError where the line breaks at this moment
            raise ConnectionResetError(str(error) or "the line is closed") from error

    def close_stdin(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._channel.shutdown_write()

    def read(self, size: int) -> bytes:
        pieces: list[bytes] = []
        missing = size
        while missing and (piece := self._channel.recv(missing)):
            pieces.append(piece)
            missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def errors(self) -> str:
        return self._said.decode(errors="replace")

    def wait(self) -> int:
        self._channel.status_event.wait()
        self._listener.join(DRAINED_S)
        status: int = self._channel.exit_status
        return status if status >= 0 else LOST

    def kill(self) -> None:
        if not self._channel.closed:
            with contextlib.suppress(Exception):  # the line may be dead as well, and closing is what counts
                self._end()
        self._channel.close()

    def _listen(self) -> None:
        """Take stderr off the channel, which would stand still once its window is full; the end of it is kept."""
        with contextlib.suppress(OSError):
            while piece := self._channel.recv_stderr(PIECE):
                self._said = (self._said + piece)[-ERRORS_KEPT:]
