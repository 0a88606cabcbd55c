"""Putting the agent onto a node, and saying why that, or its start, came to nothing."""

import contextlib
import threading

from fedctl import remote
from fedctl.errors import ConnectionLost, NodeError
from fedctl.strictjson import printable
from fedctl.transports import LOST, Process, Transport

CHUNK = 2**20


def send_agent(transport: Transport, python: str, home: str, digest: str, source: bytes, answer_s: float) -> None:
    """Send the agent's source there; raises NodeError."""
    process = transport.open(remote.install_agent(python, digest, home))
    drain(process, answer_s, source)
    if process.wait():
        failure = ConnectionLost("the agent could not be installed")
        raise explained(transport, python, process, "", failure, answer_s)


def explained(
    transport: Transport, python: str, process: Process, noise: str, lost: ConnectionLost, answer_s: float
) -> NodeError:
    """Why the agent did not start, as far as the end of its process tells."""
    status, said = process.wait(), "\n".join(printable(line) for line in process.errors().splitlines()).strip()
    error = remote.explain(python, status, noise, said)
    if error is None and said:
        trial = transport.open(remote.tell_version(python))
        error = remote.judge_version(python, drain(trial, answer_s) + trial.errors())
    if error is None and (said or 0 <= status < LOST):
        error = NodeError(f"the agent did not start: {said.splitlines()[-1] if said else lost.message}")
    return error or lost


def drain(process: Process, answer_s: float, source: bytes = b"") -> str:
    """The beginning of a command's output, which has that long to read the source and to come to its end."""
    guard = threading.Timer(answer_s, process.kill)
    guard.daemon = True
    guard.start()
    threading.Thread(target=_feed, args=(process, source), daemon=True).start()  # it may speak before it reads
    said = process.read(CHUNK)
    while process.read(CHUNK):
        pass  # a shell may have a word to say
    process.wait()
    guard.cancel()
    return said.decode(errors="replace")


def _feed(process: Process, source: bytes) -> None:
    with contextlib.suppress(OSError, ValueError):  # the exit status and stderr say why
        process.write(source)
    process.close_stdin()
