"""What a machine needs before a task can run there, a bundle and a Python with the packages: sends what is missing."""

import platform
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedctl import transfer
from fedctl.connection import LINE_LOST, Connection
from fedctl.environment import Environment, Given, allowed_instead, differences, is_recent, missing, version_here
from fedctl.errors import ConnectionLost, InstallError, NodeError
from fedctl.records import Blob
from fedctl.replies import heed
from fedctl.strictjson import printable

Told = Callable[[str], None]
"""Is told the newest line about the work that goes on."""


def silent(_: str) -> None:
    """Is told, and tells nobody."""


LONGEST_SILENCE_S = 1800.0
"""How long an installer may say nothing, in seconds: the largest packages take minutes to unpack on a slow disk."""
_REMEDY = "install Python 3.10 or newer there, or uv, or name a Python in `python:`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """How a machine was made ready. `interpreter` is what a worker's spec says of its Python; `seconds` making took."""

    bundle: Literal["sent", "there"]
    environment: Literal["made", "there", "as given", "the coordinator's"]
    python: str
    interpreter: Mapping[str, str]
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def is_new(self) -> bool:
        """True where something had to be done."""
        return self.bundle == "sent" or self.environment == "made"


def needs(bundle: Blob, environment: Environment | Given | None) -> dict[str, Any]:
    """What the agent is asked about: a bundle, and an environment to make or a Python to use."""
    return {"bundle": bundle.digest, **(environment.needs() if environment else {})}


class Preparation:
    """One machine's way to be ready. Many threads may ask for it; one does it, and a failure is told to all who waited.

    `python` is the Python of a machine that needs no `environment`, and `asker` the identity of the run.
    """

    def __init__(
        self, bundle: Blob, bundle_path: Path, environment: Environment | Given | None, python: str, asker: str
    ) -> None:
        self._bundle = bundle
        self._bundle_path = bundle_path
        self._environment = environment
        self._python = python
        self._asker = asker
        self._preparing = threading.Lock()
        self._prepared: Prepared | None = None
        self._refusal: NodeError | None = None

    @property
    def needs(self) -> dict[str, Any] | None:
        """What the agent is to be asked about as it is greeted; None when the machine is ready."""
        if self._prepared is not None:
            return None
        return needs(self._bundle, self._environment)

    @property
    def interpreter(self) -> Mapping[str, str]:
        """What a worker's spec says of its Python."""
        return self._prepared.interpreter if self._prepared else {"python": self._python}

    def forget(self) -> None:
        """What was there is gone: look again, and bring what is missing."""
        self._prepared = None

    def over(self, connection: Connection, told: Told = silent) -> Prepared:
        """Bring what is missing over that line, once; raises NodeError."""
        before = self._refusal
        with self._preparing:
            if self._prepared is None:
                if self._refusal is not None and self._refusal is not before:
                    raise self._refusal
                try:
                    self._prepared = self._prepare(connection, told)
                except ConnectionLost:
                    raise
                except NodeError as refusal:
                    self._refusal = refusal
                    raise
            return self._prepared

    def _prepare(self, connection: Connection, told: Told) -> Prepared:
        stand = self._stand(connection)
        environment = self._environment
        if "error" in stand:
            is_given = isinstance(environment, Given)
            remedy = allowed_instead(stand) or ("correct `python:` of that node" if is_given else _REMEDY)
            raise NodeError(printable(str(stand["error"])[:1000]), hint=remedy)
        notes = _judge(environment.python, stand) if isinstance(environment, Given) else ()
        bundle = self._send_bundle(connection, told, is_there=stand.get("bundle") is True)
        match environment, stand:
            case Environment(), {"environment": {"digest": str(digest), "ready": bool(ready), "version": str(version)}}:
                return Prepared(
                    bundle=bundle,
                    environment="there" if ready else "made",
                    python=printable(version),
                    interpreter={"environment": digest},
                    seconds=0.0 if ready else self._make(connection, environment, digest, told),
                )
            case Given(), {"python": {"python": str(version)}}:
                return Prepared(
                    bundle=bundle,
                    environment="as given",
                    python=f"{printable(version)}, {environment.python}",
                    interpreter={"python": environment.python},
                    notes=notes,
                )
            case None, _:
                return Prepared(
                    bundle=bundle,
                    environment="the coordinator's",
                    python=f"{platform.python_version()}, {self._python}",
                    interpreter=self.interpreter,
                )
            case _:
                raise NodeError("the agent does not say how the machine stands")

    def _stand(self, connection: Connection) -> Mapping[str, Any]:
        """How the machine stands to the needs: as the greeting said, which tells of its own moment alone."""
        stand, connection.has = connection.has, None
        if stand is None:
            stand = connection.ask("hello", needs=self.needs).get("has")
        return stand if isinstance(stand, dict) else {}

    def _send_bundle(self, connection: Connection, told: Told, *, is_there: bool) -> Literal["sent", "there"]:
        if is_there:
            return "there"
        told("sending the code")
        transfer.put(connection, self._bundle, self._bundle_path)
        answer = connection.ask("unpack", digest=self._bundle.digest)
        heed(answer.get("declined", {"may": True}))
        if answer.get("missing"):
            raise ConnectionLost("the code was damaged on the node's disk")
        return "sent"

    def _make(self, connection: Connection, environment: Environment, digest: str, told: Told) -> float:
        """Have an environment made, or watch the making that is on its way; returns the seconds that it took."""
        began = time.monotonic()
        for number, (name, blob) in enumerate(environment.wheels.items(), start=1):
            told(f"sending {name} ({number} of {len(environment.wheels)})")
            transfer.put(connection, blob, environment.wheelhouse / name)
        told("making the environment")
        pushes: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        connection.listen(digest, pushes.put)
        try:
            needed = environment.needs()
            answer = connection.ask("environment", bundle=self._bundle.digest, identity=self._asker, **needed)
            heed(answer.get("declined", {"may": True}))
            while True:
                try:
                    push = pushes.get(timeout=LONGEST_SILENCE_S)
                except queue.Empty:
                    raise NodeError(
                        f"the making of the environment has said nothing for {LONGEST_SILENCE_S / 60:.0f} minutes",
                        hint="look on the node at what it waits for; the log is in env/ of fedctl's home there",
                    ) from None
                match push:
                    case {"push": "environment", "line": str(line)}:
                        told(printable(line[:500]))
                    case {"push": "environment ended", "end": {"error": str(error), **rest}}:
                        raise _failure(error, str(rest.get("hint") or ""), str(rest.get("detail") or ""))
                    case {"push": "environment ended"}:
                        return time.monotonic() - began
                    case _ if push is LINE_LOST:
                        raise ConnectionLost("the line broke while the environment was made; the making goes on")
        finally:
            connection.unlisten(digest)


def _failure(error: str, hint: str, detail: str) -> InstallError:
    """What a node says of a making that came to nothing; of the installer's words the telling line goes first."""
    lines = [printable(line[:500]) for line in detail.splitlines()[-20:]]
    errors = [line for line in lines if line.lower().startswith("error")]
    telling = (errors or lines)[-1:]
    return InstallError(
        ": ".join([printable(error[:500]), *telling]), hint=printable(hint[:500]) or None, detail="\n".join(lines)
    )


def _judge(python: str, stand: Mapping[str, Any]) -> tuple[str, ...]:
    """See that a Python has what tasks need; returns what differs from the coordinator's. Raises NodeError."""
    match stand.get("python"):
        case {"python": str(version), "packages": dict(packages)}:
            pass
        case _:
            raise NodeError("the agent does not say what that Python holds")
    if not is_recent(version):
        raise NodeError(
            f"{python} is Python {printable(version)}; tasks need 3.10 or newer",
            hint="name a newer one in `python:`, or leave it out to have an environment made",
        )
    if lacking := missing(packages):
        wanted = " ".join(f"{name}=={version_here(name)}" if version_here(name) else name for name in lacking)
        raise NodeError(
            f"{python} has no {' and no '.join(lacking)}",
            hint=f"`{python} -m pip install {wanted}` there, or leave `python:` out to have an environment made",
        )
    return tuple(differences(packages))
