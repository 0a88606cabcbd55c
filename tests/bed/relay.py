"""A TCP relay in a process of its own: a long, slow or broken line to a server.

`Relay` is the handle in the test; run as a program, this file is the relay, told what to be by lines of JSON on stdin.
Each direction of a connection has a thread that reads and one that writes, with a queue between them that holds what is
on its way. Directions: `up` is to the server, `down` from it.
"""

import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

Direction = Literal["up", "down"]
PIECE = 2**18
MOST_ON_THE_WAY = 2**28
"""Bytes a direction: 300 MB/s and almost a second of delay."""


class Relay:
    """A port of 127.0.0.1 that leads to `address:port`, until `close`."""

    def __init__(self, address: str, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, address, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port: int = self._answer()

    def shape(self, *, delay: float = 0, rate: float = 0) -> None:
        """One-way delay in seconds, and bytes a second each way (0: as fast as it goes)."""
        self._ask("shape", delay=delay, rate=rate)

    def cut(self) -> None:
        """From now on nothing passes, and nothing is closed."""
        self._ask("cut")

    def heal(self) -> None:
        """What was held back passes, in order."""
        self._ask("heal")

    def reset(self) -> None:
        """Every connection ends with a RST; new ones are welcome."""
        self._ask("reset")

    def cut_after(self, size: int, direction: Direction) -> None:
        """Exactly so many more bytes pass that way, over all connections; then all of them close, and new ones work."""
        self._ask("cut_after", size=size, direction=direction)

    def carried(self, direction: Direction) -> int:
        """Bytes that passed so far."""
        return self._ask("counts")[direction]

    def connections(self) -> int:
        """How many were made so far."""
        return self._ask("counts")["connections"]

    def close(self) -> None:
        """End the relay and its connections; whatever else was asked for waits no more."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, order: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([order, arguments]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@dataclass
class Line:
    """What the connections share. The condition is told of every change."""

    delay: float = 0
    rate: float = 0
    alive: bool = True
    left: dict[str, int | None] = field(default_factory=lambda: {"up": None, "down": None})
    carried: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    pairs: list[tuple[socket.socket, socket.socket]] = field(default_factory=list)
    connections: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def most_on_the_way(self) -> int:
        return min(MOST_ON_THE_WAY, int(self.rate * self.delay) + PIECE) if self.rate else MOST_ON_THE_WAY

    def piece(self) -> int:
        """A hundredth of a second's worth at most, so that a slow line flows."""
        return min(PIECE, max(1460, int(self.rate / 100))) if self.rate else PIECE

    def may_pass(self, direction: str, size: int) -> int:
        """How many of so many bytes pass now; waits while the line is dead. Fewer than asked for: then it breaks."""
        with self.changed:
            self.changed.wait_for(lambda: self.alive)
            left = self.left[direction]
            if left is None:
                passed = size
            else:
                passed = min(size, left)
                self.left[direction] = left - passed
            self.carried[direction] += passed
            return passed

    def close_all(self, *, abort: bool) -> None:
        with self.changed:
            pairs = list(self.pairs)
            self.left = {"up": None, "down": None}
        for pair in pairs:
            self.close(pair, abort=abort)

    def close(self, pair: tuple[socket.socket, socket.socket], *, abort: bool) -> None:
        with self.changed:
            if pair in self.pairs:
                self.pairs.remove(pair)
        for end in pair:
            close(end, abort=abort)


class Way:
    """One direction of one connection."""

    def __init__(self, line: Line, direction: str, pair: tuple[socket.socket, socket.socket]) -> None:
        self.line, self.direction, self.pair = line, direction, pair
        self.source, self.sink = pair if direction == "up" else reversed(pair)
        self.queue: deque[tuple[float, bytes]] = deque()
        self.size = 0
        self.changed = threading.Condition()

    def carry(self) -> None:
        """Until the end of the direction."""
        reader = threading.Thread(target=self.read, daemon=True)
        reader.start()
        self.write()
        reader.join()

    def read(self) -> None:
        free_at = 0.0
        while True:
            try:
                data = self.source.recv(self.line.piece())
            except OSError:
                data = b""
            now = time.monotonic()
            if self.line.rate:
                free_at = max(now, free_at) + len(data) / self.line.rate
            with self.changed:
                self.queue.append((max(now, free_at) + self.line.delay, data))
                self.size += len(data)
                self.changed.notify_all()
                if not data:
                    return
                self.changed.wait_for(lambda: self.size < self.line.most_on_the_way())

    def write(self) -> None:
        try:
            while self.pass_on():
                pass
            self.sink.shutdown(socket.SHUT_WR)
        except OSError:
            self.line.close(self.pair, abort=True)

    def pass_on(self) -> bool:
        """Pass the next piece when its time has come; false at the end."""
        with self.changed:
            self.changed.wait_for(lambda: self.queue)
            due, data = self.queue.popleft()
            self.size -= len(data)
            self.changed.notify_all()
        if (early := due - time.monotonic()) > 0:
            time.sleep(early)
        passed = self.line.may_pass(self.direction, len(data))
        self.sink.sendall(data[:passed])
        if self.line.left[self.direction] == 0:
            self.line.close_all(abort=False)
            return False
        return bool(data)


def close(end: socket.socket, *, abort: bool) -> None:
    """Close so that whoever reads from it wakes; without `shutdown` a reader would hold it open."""
    with suppress(OSError):  # another thread may have closed it
        if abort:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RD if abort else socket.SHUT_RDWR)  # the other half would send a FIN
    end.close()


def accept(line: Line, listener: socket.socket, target: tuple[str, int]) -> None:
    while True:
        client, _ = listener.accept()
        threading.Thread(target=connect, args=(line, client, target), daemon=True).start()


def connect(line: Line, client: socket.socket, target: tuple[str, int]) -> None:
    try:
        server = socket.create_connection(target)
    except OSError:
        client.close()
        return
    for end in (client, server):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    pair = (client, server)
    with line.changed:
        line.pairs.append(pair)
        line.connections += 1
    up = threading.Thread(target=Way(line, "up", pair).carry, daemon=True)
    up.start()
    Way(line, "down", pair).carry()
    up.join()
    line.close(pair, abort=False)


def obey(line: Line, order: str, arguments: dict[str, Any]) -> dict[str, int]:
    with line.changed:
        match order:
            case "shape":
                line.delay, line.rate = arguments["delay"], arguments["rate"]
            case "cut" | "heal":
                line.alive = order == "heal"
            case "cut_after":
                line.left[arguments["direction"]] = arguments["size"]
        line.changed.notify_all()
    if order == "reset":
        line.close_all(abort=True)
    return {**line.carried, "connections": line.connections}


def main() -> None:
    line, listener = Line(), socket.create_server(("127.0.0.1", 0), backlog=256)
    target = (sys.argv[1], int(sys.argv[2]))
    threading.Thread(target=accept, args=(line, listener, target), daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    for text in sys.stdin:
        order, arguments = json.loads(text)
        print(json.dumps(obey(line, order, arguments)), flush=True)


if __name__ == "__main__":
    main()
