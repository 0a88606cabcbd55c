"""`fedctl audit`: a run's journal beside the ledgers of its nodes."""

import contextlib
from dataclasses import dataclass

from fedctl.audit import NodeAudit
from fedctl.audit import audit as compare
from fedctl.host import Host
from fedctl.hosts import Hosts
from fedctl.journal import read
from fedctl.ledger import Statement
from fedctl.operations.launch import configured, work_of
from fedctl.rundir import RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """A run's nodes, each beside the journal; `is_verified` where every hash of their chains was computed here."""

    run: str
    is_verified: bool
    nodes: tuple[NodeAudit, ...]


def audit(run: RunDir, *, verify: bool = False) -> Audit:
    """Ask every node for its ledger of the run and compare that with the journal.

    With `verify` whole chains come here, of others' runs only the digests, and are computed again.
    """
    events, federation = read(run.journal), configured(run)
    work = work_of(federation, run)
    with contextlib.closing(Hosts(federation, work)) as hosts:
        machines = {id(host): machine for machine, host in hosts.by_machine().items()}
        of = {node.name: machines[id(hosts.of(node.name))] for node in federation.nodes}

        def ask(host: Host) -> Statement:
            return host.ledger(is_whole=verify)

        said = hosts.each(ask, among=set(of.values()))
    statements = {node: said[machine] for node, machine in of.items()}
    return Audit(run=run.name, is_verified=verify, nodes=compare(events, statements, work.bundle.digest))
