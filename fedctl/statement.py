"""What a node's ledger says of a run, asked of its agent page by page."""

from typing import Any

from fedctl.connection import Connection
from fedctl.errors import ProtocolError
from fedctl.ledger import Statement
from fedctl.node import agent
from fedctl.replies import pin_of
from fedctl.strictjson import printable

MOST_BYTES = 2**30
"""What of a ledger is taken at most."""


def statement_of(connection: Connection, identity: str, *, is_whole: bool) -> Statement:
    """The entries of the run with that identity, or the whole chain with others' digests; raises NodeError."""
    first: dict[str, Any] = {}
    lines: list[bytes] = []
    offset, came = 0, 0
    while True:
        answer, body = connection.begin(
            "ledger", awaited=2 * agent.PAGE, identity=identity, offset=offset, whole=is_whole
        )()
        first = first or answer
        lines += body.splitlines(keepends=True)
        came += len(body)
        match answer.get("offset"):
            case None:
                break
            case int(further) if further > offset and len(body) >= agent.PAGE and came <= MOST_BYTES:
                offset = further
            case _:
                raise ProtocolError("the node's ledger has no end")
    trouble = first.get("trouble")
    return Statement(
        lines=tuple(lines),
        head=pin_of(first.get("head")),
        trouble=None if trouble is None else printable(str(trouble)[:500]),
        is_whole=is_whole,
    )
