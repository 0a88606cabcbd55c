"""Whether a run's journal and its nodes' ledgers tell the same: what arrived, what left, and in which chain. Pure."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fedctl.errors import FedctlError
from fedctl.events import Event, MessageReceived, ModelEvaluated, RunFinished, TaskFailed, UpdateReceived
from fedctl.ledger import Pin, Statement
from fedctl.node import agent
from fedctl.records import Score, TaskKey

KINDS = ("update", "result", "progress", "log")
"""What leaves of a task, as its entries call it."""
MOST_BYTES = 2**60
"""What no size is: a node's ledger may say anything."""

Arrived = UpdateReceived | ModelEvaluated | MessageReceived


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAudit:
    """What left one node in a run, in bytes by `KINDS`, and whether the journal says so too.

    `differences` are what one of both has and the other not; `remarks` are worth knowing and prove nothing. A node that
    could not be asked has neither, and the `reason`. `epsilon` is what its noise has spent so far, by its own account.
    """

    node: str
    state: Literal["agrees", "differs", "unreachable"]
    entries: int = 0
    bytes: Mapping[str, int] = field(default_factory=dict)
    epsilon: float | None = None
    head: Pin | None = None
    differences: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    reason: str | None = None


class Book:
    """A machine's statement, read: its entries by the node that they are about, and what is wrong with its chain."""

    def __init__(self, statement: Statement) -> None:
        self.head = statement.head
        self.trouble = statement.trouble
        self.hashes: dict[int, str] = {}
        self.entries: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        number, chain = 0, agent.BEFORE_ALL
        for line in statement.lines:
            match = agent.CHAINED.search(line, max(0, len(line) - 200))
            if match is None:
                digest = line.strip().decode(errors="replace")
                if not agent.DIGEST.match(digest):
                    self._is_wrong(f"the line after entry {number} is no entry")
                    continue
                number, chain = number + 1, agent.chained(chain, digest)
                continue
            prev, stated = (part.decode() for part in match.groups())
            found, entry = self._read(line, match.start(), number)
            if entry is None:
                continue
            digest = agent.hash_of(line[: match.start()]).hexdigest()
            before = (number, chain) if statement.is_whole else (found - 1, prev)
            self._is_wrong(agent.misfit(*before, found, digest, prev, stated))
            number, chain = found, agent.chained(prev, digest)
            self.hashes[found] = stated
            self.entries[_node_of(entry)].append(entry)
        if statement.is_whole and (number, chain) != (
            (self.head.n, self.head.hash) if self.head else (0, agent.BEFORE_ALL)
        ):
            self._is_wrong(f"its last entries are not those that it ends with: {number} are there")

    def _read(self, line: bytes, end: int, number: int) -> tuple[int, Mapping[str, Any] | None]:
        numbered = agent.NUMBERED.match(line)
        try:
            if numbered:
                return int(numbered[1]), agent.parse(line[:end] + b"}")
        except ValueError:
            pass
        self._is_wrong(f"the line after entry {number} is no entry")
        return number, None

    def _is_wrong(self, trouble: str | None) -> None:
        self.trouble = self.trouble or trouble

    def against(self, pins: Sequence[Pin]) -> str | None:
        """What is wrong with the entries that the journal pinned; None where all stand as they stood."""
        end, last = self.head.n if self.head else 0, max((pin.n for pin in pins), default=0)
        if end < last:
            return f"its ledger was cut off: it ends at {end}, and the journal knows of {last}"
        wrong = next((pin.n for pin in pins if self.hashes.get(pin.n) != pin.hash), None)
        if wrong is None:
            return None
        if wrong in self.hashes:
            return f"entry {wrong} of its ledger was rewritten: the journal has it otherwise"
        return f"entry {wrong} of its ledger is gone: the journal has it"


def audit(
    events: Iterable[Event], statements: Mapping[str, Statement | FedctlError], bundle: str
) -> tuple[NodeAudit, ...]:
    """Each node of `statements` against the journal of a run whose code has the digest `bundle`."""
    arrived: dict[str, list[Arrived]] = defaultdict(list)
    failed: set[TaskKey] = set()
    is_finished = False
    for event in events:
        match event:
            case UpdateReceived() | ModelEvaluated() | MessageReceived():
                arrived[event.task.node].append(event)
            case TaskFailed():
                failed.add(event.task)
            case RunFinished():
                is_finished = True
            case _:
                pass
    books = {id(said): Book(said) for said in statements.values() if isinstance(said, Statement)}
    return tuple(
        NodeAudit(node=node, state="unreachable", reason=said.message)
        if isinstance(said, FedctlError)
        else _compare(node, books[id(said)], arrived[node], failed, bundle, is_finished=is_finished)
        for node, said in statements.items()
    )


def _compare(
    node: str, book: Book, arrived: Sequence[Arrived], failed: set[TaskKey], bundle: str, *, is_finished: bool
) -> NodeAudit:
    entries = book.entries.get(node, [])
    left: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        left[str(entry.get("kind")), str(entry.get("task"))].append(entry)
    differences = [f"the chain of its ledger is broken: {book.trouble}"] if book.trouble else []
    is_gone = bool(arrived) and not book.entries
    if is_gone:
        differences.append("its ledger has nothing of this run: it was removed, as `clean --nodes` does, or begun anew")
    else:
        for event in arrived:
            differences += _differences(event, left, bundle)
    pins = [event.ledger for event in arrived if event.ledger]
    wrong = None if is_gone else book.against(pins)
    accounted = {str(event.task) for event in arrived} | {str(key) for key in failed}
    lost = [key for (kind, key) in left if kind == "update" and key not in accounted]
    untold = [key for (kind, key) in left if kind == "result" and key not in accounted and key not in lost]
    remarks = [f"{key}: its result left, and nobody waited for it any more" for key in untold]
    never = [f"{key}: its update left and never arrived" for key in lost]
    if not is_finished:
        remarks, never = [f"{key}: what left has not arrived yet" for key in (*lost, *untold)], []
    differences += [*([wrong] if wrong else []), *never]
    spent = [_epsilon(entry) for entry in entries]
    return NodeAudit(
        node=node,
        state="differs" if differences else "agrees",
        entries=len(entries),
        bytes={kind: sum(_size(entry) for entry in entries if entry.get("kind") == kind) for kind in KINDS},
        epsilon=next((one for one in reversed(spent) if one is not None), None),
        head=book.head,
        differences=tuple(differences),
        remarks=tuple(remarks),
    )


def _differences(
    event: Arrived, left: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]], bundle: str
) -> Iterable[str]:
    """What the journal has of a task and the ledger has not, or otherwise."""
    key = str(event.task)
    results = left.get(("result", key), ())
    if not results:
        yield f"{key}: its result is in the journal and not in the ledger"
    elif not any(_is_same(event, entry) for entry in results):
        yield f"{key}: its result is not the same in the journal and in the ledger"
    if not isinstance(event, UpdateReceived):
        return
    blob, updates = event.wire or event.update, left.get(("update", key), ())
    if not updates:
        yield f"{key}: its update is in the journal and not in the ledger"
    for entry in updates:
        if (entry.get("sha256"), entry.get("size")) != (blob.digest, blob.size):
            yield (
                f"{key}: {blob.digest[:8]} of {blob.size:,} bytes arrived, and {str(entry.get('sha256'))[:8]} "
                f"of {_size(entry):,} bytes left"
            )
        if entry.get("code") != bundle:
            yield f"{key}: it was made by other code than the run's: {str(entry.get('code'))[:8]}, not {bundle[:8]}"


def _is_same(event: Arrived, entry: Mapping[str, Any]) -> bool:
    """Whether a result that arrived is the one that an entry says left."""
    match event:
        case UpdateReceived():
            return (event.examples, _plain(event.metrics)) == (entry.get("examples"), entry.get("metrics"))
        case ModelEvaluated():
            return {label: _score(score) for label, score in event.scores.items()} == entry.get("scores")
        case MessageReceived():
            return entry.get("message") == {"size": event.message.size, "sha256": event.message.digest}


def _score(score: Score) -> dict[str, Any]:
    return {"examples": score.examples, "metrics": _plain(score.metrics)}


def _plain(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _node_of(entry: Mapping[str, Any]) -> str:
    """Whose task an entry is about; empty for one about none."""
    try:
        return TaskKey.parse(entry["task"]).node
    except (KeyError, ValueError):
        return ""


def _size(entry: Mapping[str, Any]) -> int:
    """The bytes that left by an entry: an update from its offset on."""
    size, offset = entry.get("size"), entry.get("offset") if entry.get("kind") == "update" else 0
    return size - offset if type(size) is type(offset) is int and 0 <= offset <= size < MOST_BYTES else 0


def _epsilon(entry: Mapping[str, Any]) -> float | None:
    """What a node says that it has spent with a training; None for other entries, and for what is no such number."""
    match entry.get("privacy"):
        case {"epsilon": int() | float() as epsilon} if 0 <= epsilon < MOST_BYTES:
            return float(epsilon)
        case _:
            return None
