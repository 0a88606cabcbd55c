"""The coordinator's end of the line to one agent: requests and their answers, and pushes, over one command's pipes.

Owns the framing on this side; knows nothing of rounds or models. Any thread may ask;
one thread reads. When the line breaks, whoever waits gets `ConnectionLost`; what runs on the node is not touched.
"""

import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from pathlib import Path
from typing import Any

import fedctl
from fedctl import install, remote
from fedctl.allowance import Allowance
from fedctl.errors import ConnectionLost, NodeError, ProtocolError
from fedctl.incoming import PIECE, Incoming
from fedctl.node import agent
from fedctl.pace import Bandwidth
from fedctl.replies import facts_of
from fedctl.strictjson import printable
from fedctl.transports import Process, Transport

ANSWER_S = 120.0
"""How long no answer may come, and nothing of one, or no room for a request, before the line counts as broken."""
SMALL = 2**15

Waiter = Callable[[], tuple[dict[str, Any], bytes]]
"""Waits for an answer and its body; raises ConnectionLost, ProtocolError, or NodeError with the agent's own refusal.

A body that a broken line cut off is as long as it came.
"""
Listener = Callable[[Mapping[str, Any]], None]
LINE_LOST: Mapping[str, Any] = {"push": "line lost"}
"""What every listener hears last when the line breaks."""


class Connection:
    """One agent, spoken to.

    `facts` is what it says of its machine, `has` what it says of the needs that it was greeted with, and `noise` what a
    login shell printed before it came.
    """

    facts: Mapping[str, Any]
    has: Mapping[str, Any] | None
    _another: Callable[[], "Connection"]

    def __init__(self, process: Process, *, answer_s: float = ANSWER_S, bandwidth: Bandwidth | None = None) -> None:
        self._process = process
        self._incoming = Incoming(process)
        self._answered_at = 0.0
        self._answer_s = answer_s
        self._bandwidth = bandwidth or Bandwidth()
        self._numbers = itertools.count(1)
        self._sending = threading.Lock()
        self._sending_since: float | None = None
        self._guard: threading.Thread | None = None
        self._waiting: dict[int, Future[tuple[dict[str, Any], bytes]]] = {}
        self._listeners: dict[str, Listener] = {}
        self._state = threading.Lock()
        self._failure: NodeError | None = None
        self._unasked = Allowance()
        self._ended = threading.Event()
        self._rtt_s: float | None = None
        threading.Thread(target=self._read, name="agent", daemon=True).start()

    @classmethod
    def open(
        cls,
        transport: Transport,
        python: str,
        *,
        home: str = "",
        needs: Mapping[str, Any] | None = None,
        answer_s: float = ANSWER_S,
        bandwidth: Bandwidth | None = None,
    ) -> "Connection":
        """Reach the agent on a node, installing it first where it is missing; raises NodeError.

        `home` is where the node keeps what is fedctl's, ~/.fedctl by default. What the agent says of the `needs` is in
        `has`, so that one round trip tells who is there and what is missing. Bodies keep to the `bandwidth` both ways.
        """
        source = Path(agent.__file__).read_bytes()
        digest = hashlib.sha256(source).hexdigest()
        asked: dict[str, Any] = {"version": fedctl.__version__, "agent": digest}
        asked |= {} if needs is None else {"needs": dict(needs)}
        for _ in range(2):
            process = transport.open(remote.serve_agent(python, digest, home))
            connection = cls(process, answer_s=answer_s, bandwidth=bandwidth)
            another = partial(cls.open, transport, python, home=home, answer_s=answer_s, bandwidth=bandwidth)
            connection._another = another
            try:
                answer = connection.ask("hello", **asked)
                connection.facts, connection.has = facts_of(answer), answer.get("has")
                if too_old := remote.judge_version(python, str(connection.facts["python"])):
                    raise too_old
            except ConnectionLost as lost:
                if connection._incoming.is_greeted:
                    raise
                install.drain(process, answer_s)
                if process.wait() == remote.ABSENT:
                    install.send_agent(transport, python, home, digest, source, answer_s)
                else:
                    raise install.explained(transport, python, process, connection.noise, lost, answer_s) from lost
            except NodeError:
                connection.close()
                raise
            else:
                return connection
        raise NodeError("the agent was installed but is not there")

    def twin(self) -> "Connection":
        """A line to one more agent on the same node; raises NodeError."""
        return self._another()

    @property
    def is_lost(self) -> bool:
        return self._failure is not None

    @property
    def failure(self) -> NodeError:
        """Why the line is lost: ProtocolError where the agent is at fault, else ConnectionLost."""
        if self._failure is None:
            raise AssertionError("the line is not lost")
        return type(self._failure)(self._failure.message)

    @property
    def noise(self) -> str:
        """The beginning of what was printed before the agent came; empty when nothing was."""
        return self._incoming.noise

    @property
    def block(self) -> int:
        """How many bytes of a file to send, or to ask for, at once."""
        return self._bandwidth.block

    def rtt_s(self) -> float:
        """How long a small exchange takes: the shorter one of two, timed once. Raises ConnectionLost."""
        if self._rtt_s is None:
            began = time.monotonic()
            self.ask("stat", digests=[])
            between = time.monotonic()
            self.ask("stat", digests=[])
            self._rtt_s = min(between - began, time.monotonic() - between)
        return self._rtt_s

    def ask(self, op: str, body: bytes = b"", **fields: Any) -> dict[str, Any]:
        """The answer to a request; raises ConnectionLost, or NodeError with the agent's own refusal."""
        return self.begin(op, body, **fields)()[0]

    def begin(self, op: str, body: bytes = b"", *, awaited: int = 0, **fields: Any) -> Waiter:
        """Send a request, whose answer is waited for later; that one's body has `awaited` bytes at most.

        On a line with a limit it first waits for its turn, which no request without a body has to.
        """
        self._ended.wait(self._bandwidth.book(sent=len(body), received=awaited))
        number = next(self._numbers)
        future: Future[tuple[dict[str, Any], bytes]] = Future()
        with self._state:
            if self._failure is not None:
                raise self.failure
            self._waiting[number] = future
        try:
            self._write({"id": number, "op": op, **fields}, body)
        except (OSError, ValueError) as error:
            self._lose(ConnectionLost(f"the line to the agent broke: {error}"))
        return partial(self._answer, future, op)

    def _answer(self, future: Future[tuple[dict[str, Any], bytes]], op: str) -> tuple[dict[str, Any], bytes]:
        while True:
            try:
                answer, data = future.result(self._answer_s)
                break
            except FutureTimeout:
                if time.monotonic() - max(self._answered_at, self._incoming.at) < self._answer_s:
                    continue  # a slow line brings what was asked for before
                silence = ConnectionLost(f"the agent has not answered `{op}` for {self._answer_s:g} s")
                self._break(silence)
                raise silence from None
        if "error" in answer:
            raise remote.judge_refusal(printable(str(answer["error"])[:1000]))
        return answer, data

    def listen(self, key: str, listener: Listener) -> None:
        """Have a task's pushes handed to `listener`, in the reading thread."""
        with self._state:
            self._listeners[key] = listener

    def unlisten(self, key: str) -> None:
        with self._state:
            self._listeners.pop(key, None)

    def close(self) -> None:
        """End the agent; its work goes on."""
        self._break(ConnectionLost("the line was closed"))

    def _write(self, header: Mapping[str, Any], body: bytes) -> None:
        """A small frame is one write; a large one is several, so that a slow line is told from a dead one."""
        head = agent.encode_head(dict(header), len(body))
        self._bandwidth.sending.count(len(head))
        cut = (body[begin : begin + PIECE] for begin in range(0, len(body), PIECE))
        pieces = (head, *cut) if len(body) > SMALL else (head + body,)
        with self._sending:
            if len(pieces) > 1 and self._guard is None:
                self._guard = threading.Thread(target=self._keep_guard, name="guard", daemon=True)
                self._guard.start()
            try:
                for piece in pieces:
                    self._sending_since = time.monotonic()
                    self._process.write(piece)
            finally:
                self._sending_since = None

    def _keep_guard(self) -> None:
        """Break the line to an agent that does not read: nobody waits for its answer while a request is being sent."""
        while not self._ended.wait(self._answer_s):
            since = self._sending_since
            if since is not None and time.monotonic() - since > self._answer_s:
                self._break(ConnectionLost(f"the agent has not read for {self._answer_s:g} s"))

    def _read(self) -> None:
        try:
            self._incoming.await_greeting()
            while frame := self._frame():
                self._hear(*frame)
        except ProtocolError as error:
            self._break(error)
        except Exception as error:  # whatever a node sends, those who wait must hear that the line broke
            self._break(ConnectionLost(f"the line to the agent broke: {error}"))
        else:
            self._lose(ConnectionLost("the agent has ended"))
            self._process.wait()
            self._process.close_stdin()

    def _frame(self) -> tuple[dict[str, Any], bytes] | None:
        """The next frame; None at the end."""
        try:
            return self._incoming.frame()
        except agent.CutOff as cut:
            if cut.body:  # every byte that came need not come again; where none did, there is no answer
                self._hear(cut.header, cut.body)
            raise

    def _break(self, failure: NodeError) -> None:
        self._lose(failure)
        self._process.kill()

    def _hear(self, header: dict[str, Any], body: bytes) -> None:
        self._bandwidth.receiving.count(self._incoming.came - len(body))
        if "re" in header:
            self._answered_at = time.monotonic()
            number = header["re"]
            with self._state:
                future = self._waiting.pop(number, None) if type(number) is int else None
            if future is not None:
                future.set_result((header, body))
            elif not self.is_lost:  # what was asked over a line that is lost since is waited for no more
                raise ProtocolError("the agent breaks the protocol: it answers what it was not asked")
            return
        self._unasked.take(self._incoming.came)
        key = header.get("key")
        with self._state:
            listener = self._listeners.get(key) if isinstance(key, str) else None
        if listener:
            listener(header)

    def _lose(self, failure: NodeError) -> None:
        with self._state:
            if self._failure is None:
                self._failure = failure
            self._ended.set()
            futures, self._waiting = list(self._waiting.values()), {}
            listeners, self._listeners = list(self._listeners.values()), {}
        for future in futures:
            future.set_exception(self.failure)
        for listener in listeners:
            listener(LINE_LOST)
