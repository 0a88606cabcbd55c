"""The policy of a node as it is at this moment: its owner may change it while a coordinator's line is open."""

from __future__ import annotations

from fedctl.node.agent import Refused
from fedctl.node.owner.errors import OwnerError
from fedctl.node.owner.policy import load
from fedctl.node.owner.terms import Policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Optional, Tuple


def policy_of(path: Path) -> Policy:
    """The policy in that file, else the one that stands for none; raises PolicyError for a wrong one."""
    return load(path) if path.exists() else Policy()


class Current:
    """A policy that is read again whenever its file has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read_at: Optional[Tuple[int, int, int]] = None
        self.read = Policy()

    @property
    def policy(self) -> Policy:
        """Raises Refused for one that cannot be followed: then nothing is allowed."""
        try:
            state = self.path.stat()
            is_now = (state.st_ino, state.st_size, state.st_mtime_ns)
        except FileNotFoundError:
            is_now = (0, 0, 0)
        if is_now != self.read_at:
            try:
                self.read, self.read_at = policy_of(self.path), is_now
            except OwnerError:
                self.read_at = None
                raise Refused("the policy of this node cannot be read: its owner has to mend it") from None
        return self.read
