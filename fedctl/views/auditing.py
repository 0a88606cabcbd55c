"""What `fedctl audit` found: a row a node, then what does not agree."""

from typing import TYPE_CHECKING, Any

from fedctl.views.show import note, show_json, show_rows
from fedctl.views.text import counted, size

if TYPE_CHECKING:
    from fedctl.audit import NodeAudit
    from fedctl.operations.audit import Audit

MOST_SHOWN = 20
"""How many differences of one node are told; a ledger that is gone differs in everything."""


def audited(found: "Audit", *, as_json: bool) -> None:
    """The verdicts, and the reasons where they are not good."""
    if as_json:
        show_json({"run": found.run, "verified": found.is_verified, "nodes": [_plain(one) for one in found.nodes]})
        return
    show_rows(
        ["NODE", "UPDATES", "RESULTS", "PROGRESS", "LOGS", "ENTRIES", "EPSILON", "VERDICT"],
        [_row(one) for one in found.nodes],
        wrapped=-1,
    )
    for one in found.nodes:
        for difference in one.differences[:MOST_SHOWN]:
            note(f"{one.node}: {difference}")
        if len(one.differences) > MOST_SHOWN:
            note(f"{one.node}: and {len(one.differences) - MOST_SHOWN} more, all in `fedctl audit --json`")
        for remark in one.remarks[:MOST_SHOWN]:
            note(f"{one.node}: {remark}")
    differ = sum(one.state == "differs" for one in found.nodes)
    silent = sum(one.state == "unreachable" for one in found.nodes)
    if differ:
        note(f"the journal of run {found.run} and {counted(differ, 'ledger')} do not agree")
    if silent:
        note(f"{counted(silent, 'node')} could not be asked: type it again once they can be reached")
    if not differ and not silent:
        how = "every hash was computed here" if found.is_verified else "`--verify` computes every hash here, too"
        note(f"the journal of run {found.run} and all ledgers agree; {how}")


def _row(one: "NodeAudit") -> list[str]:
    if one.state == "unreachable":
        return [one.node, "", "", "", "", "", "", one.reason or "unreachable"]
    left = (size(one.bytes[kind]) for kind in ("update", "result", "progress", "log"))
    epsilon = "" if one.epsilon is None else f"{one.epsilon:.2f}"
    return [one.node, *left, str(one.entries), epsilon, one.state]


def _plain(one: "NodeAudit") -> dict[str, Any]:
    return {
        "node": one.node,
        "state": one.state,
        "reason": one.reason,
        "entries": one.entries,
        "bytes": dict(one.bytes),
        "epsilon": one.epsilon,
        "head": one.head and one.head.to_json(),
        "differences": list(one.differences),
        "remarks": list(one.remarks),
    }
