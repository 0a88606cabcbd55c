"""Which processes serve a key at this moment, so that they can be ended when it is revoked."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time

from fedctl.node.agent import END_S, TICK_S, is_held, remove, tail
from fedctl.node.owner.place import Place, name_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator


@contextlib.contextmanager
def marked(place: Place, fingerprint: str) -> Iterator[None]:
    """While this process serves a key there is a file, held, that says so."""
    path = place.lines / f"{name_of(fingerprint)}.{os.getpid()}"
    with path.open("w") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        mark.write(str(os.getpid()))
        mark.flush()
        try:
            yield
        finally:
            remove(path)


def end(place: Place, fingerprint: str) -> int:
    """End the processes that serve a key, and return how many there were; marks of dead ones are swept."""
    ended = 0
    for path in place.lines.glob(f"{name_of(fingerprint)}.*"):
        number = tail(path, 20)
        if number.isdigit() and is_held(path):
            ended += 1
            with contextlib.suppress(OSError):
                os.kill(int(number), signal.SIGKILL)
        deadline = time.monotonic() + END_S
        while is_held(path) and time.monotonic() < deadline:
            time.sleep(TICK_S)
        remove(path)
    return ended
