"""Real SSH servers on this machine, for tests and benchmarks; the standard library only.

`LoopbackBed` runs sshds on free ports of 127.0.0.1, as any user. `NamespaceBed`, as root, gives each node an address
and a hostname of its own. `open_bed` takes the better of the two.
"""

from pathlib import Path

from tests.bed.bed import Bed
from tests.bed.loopback import LoopbackBed
from tests.bed.namespaces import NamespaceBed, why_not

__all__ = ["Bed", "LoopbackBed", "NamespaceBed", "open_bed", "which", "why_not"]


def open_bed(folder: Path) -> Bed:
    """A bed whose nodes can be cut off: network namespaces where we may, else loopback ports behind relays."""
    return NamespaceBed(folder) if why_not() is None else LoopbackBed(folder, relayed=True)


def which() -> str:
    """The line that says which way `open_bed` takes."""
    reason = why_not()
    return "ssh bed: network namespaces" if reason is None else f"ssh bed: loopback ({reason})"
