"""The coordinator's end of the line to one agent: requests and their answers, and pushes, over one command's pipes.

Owns the framing on this side and the installing of the agent; knows nothing of rounds or models. Any thread may ask;
one thread reads. When the line breaks, whoever waits gets `ConnectionLost`; what runs on the node is not touched.
"""

import contextlib
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
from fedctl.records import Blob, printable
from fedctl.transports import Process, Transport

ANSWER_S = 120.0
"""How long an answer, or room for a large request, may take before the line counts as broken."""
CHUNK = 2**20
SMALL = 2**15

Listener = Callable[[Mapping[str, Any]], None]
LINE_LOST: Mapping[str, Any] = {"push": "line lost"}
"""What every listener hears last when the line breaks."""


class Connection:
    """One agent, spoken to."""

    def __init__(self, process: Process, *, answer_s: float = ANSWER_S) -> None:
        self._process = process
        self._answer_s = answer_s
        self._numbers = itertools.count(1)
        self._sending = threading.Lock()
        self._waiting: dict[int, Future[tuple[dict[str, Any], bytes]]] = {}
        self._listeners: dict[str, Listener] = {}
        self._state = threading.Lock()
        self._lost: str | None = None
        threading.Thread(target=self._read, name="agent", daemon=True).start()

    @classmethod
    def open(cls, transport: Transport, python: str, *, answer_s: float = ANSWER_S) -> "Connection":
        """Reach the agent on a node, installing it first where it is missing; raises NodeError."""
        source = Path(agent.__file__).read_bytes()
        digest = hashlib.sha256(source).hexdigest()
        for _ in range(2):
            process = transport.open(remote.serve_agent(python, digest))
            connection = cls(process, answer_s=answer_s)
            try:
                connection.facts = _facts(connection.ask("hello"))
            except ConnectionLost as lost:
                process.close_stdin()
                if process.wait() != remote.ABSENT:
                    raise NodeError(f"the agent did not start: {_last_words(process) or lost.message}") from lost
                _install(transport, python, digest, source)
            except NodeError:
                connection.close()
                raise
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
        silence = f"the agent has not answered `{op}` for {self._answer_s:g} s"
        try:
            self._write(agent.encode_frame({"id": number, "op": op, **fields}, body), silence)
        except (OSError, ValueError) as error:
            self._lose(f"the line to the agent broke: {error}")
        try:
            answer, data = future.result(self._answer_s)
        except FutureTimeout:
            self._break(silence)
            raise ConnectionLost(silence) from None
        if "error" in answer:
            raise NodeError(printable(str(answer["error"])[:1000]))
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
        match self.ask("stat", digests=[blob.digest]):
            case {"blobs": {blob.digest: {"whole": True}}}:
                return 0
            case {"blobs": {blob.digest: {"whole": False, "size": int(size)}}}:
                began = max(0, min(size, blob.size))
            case _:
                raise NodeError("the agent's answer to `stat` is not one")
        try:
            return self._send(blob, source, began)
        except ConnectionLost:
            raise
        except NodeError:
            if began == 0:
                raise
            return self._send(blob, source, 0)  # what was there before was not the beginning of this

    def close(self) -> None:
        """End the agent; its work goes on."""
        self._break("the line was closed")

    def _send(self, blob: Blob, source: Path, offset: int) -> int:
        began = offset
        with source.open("rb") as file:
            file.seek(offset)
            while True:
                chunk = file.read(CHUNK)
                answer = self.ask("put", chunk, digest=blob.digest, size=blob.size, offset=offset)
                offset += len(chunk)
                if answer.get("whole"):
                    return offset - began
                if not chunk:
                    raise NodeError(f"{source} is shorter than it should be")

    def _write(self, frame: bytes, silence: str) -> None:
        """A large frame may wait for an agent that does not read, and then nobody would see that it does not answer."""
        guard = threading.Timer(self._answer_s, self._break, [silence]) if len(frame) > SMALL else None
        if guard:
            guard.daemon = True
            guard.start()
        try:
            with self._sending:
                self._process.write(frame)
        finally:
            if guard:
                guard.cancel()

    def _read(self) -> None:
        try:
            while frame := agent.read_frame(self._process.read):
                self._hear(*frame)
        except Exception as error:  # whatever a node sends, those who wait must hear that the line broke
            self._break(f"the line to the agent broke: {error}")
        else:
            self._lose("the agent has ended")
            self._process.wait()
            self._process.close_stdin()

    def _break(self, why: str) -> None:
        self._lose(why)
        self._process.kill()

    def _hear(self, header: dict[str, Any], body: bytes) -> None:
        if "re" in header:
            with self._state:
                future = self._waiting.pop(header["re"], None)
            if future:
                future.set_result((header, body))
            return
        key = header.get("key")
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
    with contextlib.suppress(OSError):  # the exit status and stderr say why
        process.write(source)
    process.close_stdin()
    while process.read(CHUNK):
        pass  # a shell may have a word to say
    if process.wait():
        raise NodeError(f"the agent could not be installed: {_last_words(process) or 'no reason was given'}")


def _last_words(process: Process) -> str:
    said = process.errors().strip().splitlines()
    return printable(said[-1]) if said else ""


def _facts(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an agent says of its machine, known names and types only: it goes into the journal. Raises NodeError."""
    facts: dict[str, Any] = {}
    for name in ("protocol", "cpus", "memory", "disk_free", "time", "python", "system", "hostname", "home"):
        match name, answer.get(name):
            case "python" | "system" | "hostname" | "home", str(text):
                facts[name] = printable(text[:1000])
            case "protocol" | "cpus" | "memory" | "disk_free" | "time", int() | float() as number if number >= 0:
                facts[name] = min(number, 2**63)
            case _:
                raise NodeError(f"the agent's greeting has no {name}")
    return facts
