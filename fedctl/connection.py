"""The coordinator's end of the line to one agent: requests and their answers, and pushes, over one command's pipes.

Owns the framing on this side and the installing of the agent; knows nothing of rounds or models. Any thread may ask;
one thread reads. When the line breaks, whoever waits gets `ConnectionLost`; what runs on the node is not touched.
"""

import hashlib
import itertools
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

from fedctl import remote
from fedctl.errors import ConnectionLost, NodeError
from fedctl.node import agent
from fedctl.records import Blob
from fedctl.transports import Process, Transport

ANSWER_S = 120.0
CHUNK = 2**20

Listener = Callable[[Mapping[str, Any]], None]
LINE_LOST: Mapping[str, Any] = {"push": "line lost"}
"""What every listener hears last when the line breaks."""


class Connection:
    """One agent, spoken to."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._numbers = itertools.count(1)
        self._sending = threading.Lock()
        self._waiting: dict[int, Future[tuple[dict[str, Any], bytes]]] = {}
        self._listeners: dict[str, Listener] = {}
        self._state = threading.Lock()
        self._lost: str | None = None
        threading.Thread(target=self._read, name="agent", daemon=True).start()

    @classmethod
    def open(cls, transport: Transport, python: str) -> "Connection":
        """Reach the agent on a node, installing it first where it is missing; raises NodeError."""
        source = Path(agent.__file__).read_bytes()
        digest = hashlib.sha256(source).hexdigest()
        for _ in range(2):
            process = transport.open(remote.serve_agent(python, digest))
            connection = cls(process)
            try:
                connection.facts = connection.ask("hello")
            except ConnectionLost as lost:
                status = process.wait()
                if status != remote.ABSENT:
                    said = process.errors().strip().splitlines()
                    raise NodeError(f"the agent did not start: {said[-1] if said else f'status {status}'}") from lost
                _install(transport, python, digest, source)
            else:
                return connection
        raise NodeError("the agent was installed but is not there")

    facts: Mapping[str, Any]

    @property
    def is_lost(self) -> bool:
        return self._lost is not None

    def ask(self, op: str, body: bytes = b"", **fields: Any) -> dict[str, Any]:
        """The answer to a request; raises ConnectionLost, or NodeError with the agent's own refusal."""
        return self.ask_for_bytes(op, body, **fields)[0]

    def ask_for_bytes(self, op: str, body: bytes = b"", **fields: Any) -> tuple[dict[str, Any], bytes]:
        """The answer to a request, and its body."""
        number = next(self._numbers)
        future: Future[tuple[dict[str, Any], bytes]] = Future()
        with self._state:
            if self._lost is not None:
                raise ConnectionLost(self._lost)
            self._waiting[number] = future
        try:
            with self._sending:
                self._process.write(agent.encode_frame({"id": number, "op": op, **fields}, body))
        except (OSError, ValueError) as error:
            self._lose(f"the line to the agent broke: {error}")
        try:
            answer, data = future.result(ANSWER_S)
        except FutureTimeout:
            self._lose(f"the agent has not answered `{op}` for {ANSWER_S:.0f} s")
            raise ConnectionLost(self._lost or "") from None
        if "error" in answer:
            raise NodeError(str(answer["error"])[:1000])
        return answer, data

    def listen(self, key: str, listener: Listener) -> None:
        """Have a task's pushes handed to `listener`, in the reading thread."""
        with self._state:
            self._listeners[key] = listener

    def unlisten(self, key: str) -> None:
        with self._state:
            self._listeners.pop(key, None)

    def put(self, blob: Blob, source: Path) -> int:
        """Send a blob unless it is there, from where an earlier try broke; returns the bytes that were sent."""
        have = self.ask("stat", digests=[blob.digest])["blobs"][blob.digest]
        if have["whole"]:
            return 0
        offset = began = min(int(have["size"]), blob.size)
        with source.open("rb") as file:
            file.seek(offset)
            while True:
                chunk = file.read(CHUNK)
                answer = self.ask("put", chunk, digest=blob.digest, size=blob.size, offset=offset)
                offset += len(chunk)
                if answer["whole"]:
                    return offset - began
                if not chunk:
                    raise NodeError(f"{source} is shorter than it should be")

    def close(self) -> None:
        """End the agent; its work goes on."""
        self._process.close_stdin()
        self._lose("the line was closed")
        self._process.kill()

    def _read(self) -> None:
        try:
            while frame := agent.read_frame(self._process.read):
                self._hear(*frame)
        except (OSError, ValueError) as error:
            self._lose(f"the line to the agent broke: {error}")
        else:
            self._lose("the agent has ended")

    def _hear(self, header: dict[str, Any], body: bytes) -> None:
        if "re" in header:
            with self._state:
                future = self._waiting.pop(header["re"], None)
            if future:
                future.set_result((header, body))
            return
        about = header.get("progress", header)
        key = about.get("key") if isinstance(about, dict) else None
        with self._state:
            listener = self._listeners.get(key) if isinstance(key, str) else None
        if listener:
            listener(header)

    def _lose(self, why: str) -> None:
        with self._state:
            if self._lost is None:
                self._lost = why
            futures, self._waiting = list(self._waiting.values()), {}
            listeners, self._listeners = list(self._listeners.values()), {}
        for future in futures:
            future.set_exception(ConnectionLost(self._lost))
        for listener in listeners:
            listener(LINE_LOST)


def _install(transport: Transport, python: str, digest: str, source: bytes) -> None:
    process = transport.open(remote.install_agent(python, digest))
    try:
        process.write(source)
    except OSError:
        pass  # the exit status and stderr say why
    process.close_stdin()
    if process.wait():
        said = process.errors().strip().splitlines()
        raise NodeError(f"the agent could not be installed: {said[-1] if said else 'no reason was given'}")
