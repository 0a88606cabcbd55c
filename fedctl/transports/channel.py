"""A command on an SSH channel, as a `Process`."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from fedctl.transports import LOST

ERRORS_KEPT = 4000
PIECE = 2**15
PACKET_ROOM = 64
DRAINED_S = 2.0
ROOM_S = 120.0
"""How long a server may give no room to send."""
GATHERED = 2**20
"""How much is waited for at a time; a channel's window is longer, so the server goes on sending meanwhile."""


class Inbox:
    """What has come and is not read yet. Paramiko's own copies it twice, and wakes the reader for every packet."""

    def __init__(self) -> None:
        self._pieces: deque[bytes | memoryview] = deque()
        self._size = 0
        self._wanted = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return self._size

    def feed(self, data: bytes) -> None:
        with self._changed:
            self._pieces.append(data)
            self._size += len(data)
            if self._size >= self._wanted:
                self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def read(self, size: int, _timeout: float | None = None) -> bytes:
        """`size` bytes but no more than `GATHERED`, or fewer at the end, however long that takes."""
        with self._changed:
            self._wanted = min(size, GATHERED)
            self._changed.wait_for(lambda: self._size >= self._wanted or self._is_closed)
            missing = self._wanted
            taken: list[bytes | memoryview] = []
            while missing and self._pieces:
                piece = self._pieces.popleft()
                if len(piece) > missing:
                    self._pieces.appendleft(memoryview(piece)[missing:])
                    piece = piece[:missing]
                taken.append(piece)
                missing -= len(piece)
            self._size -= self._wanted - missing
            return b"".join(taken)


class ChannelProcess:
    """A command on paramiko's `channel`, which is not started before this is made; `end` has the server kill it."""

    def __init__(self, channel: Any, end: Callable[[], None]) -> None:
        channel.in_buffer = Inbox()
        channel.settimeout(ROOM_S)
        self._is_killed = False
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
                sent = self._channel.send(view[: self._piece])
                view = view[sent:] if sent else self._refuse()
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
        with contextlib.suppress(Exception):  # to make room at the server something is sent, and the line may be dead
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
        return LOST if status < 0 or self._is_killed else status

    def kill(self) -> None:
        if not self._channel.closed:
            self._is_killed = self._channel.exit_status < 0
            with contextlib.suppress(Exception):  # the line may be dead as well, and closing is what counts
                self._end()
            with contextlib.suppress(Exception):
                self._channel.close()

    def _refuse(self) -> NoReturn:
        raise BrokenPipeError("its stdin is closed")

    def _listen(self) -> None:
        """Take stderr off the channel, which would stand still once its window is full; the end of it is kept."""
        with contextlib.suppress(Exception):  # a line that breaks says so to whoever reads stdout
            while True:
                try:
                    piece = self._channel.recv_stderr(PIECE)
                except TimeoutError:  # there was nothing to say
                    continue
                if not piece:
                    return
                self._said = (self._said + piece)[-ERRORS_KEPT:]
