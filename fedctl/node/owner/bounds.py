"""What a request may hold: no operation of the agent meets anything else. All of it raises Refused."""

from __future__ import annotations

from pathlib import Path

from fedctl.node.agent import DIGEST, Refused
from fedctl.node.owner import confinement, fence, rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Optional

    from fedctl.node.agent import Confined, Header
    from fedctl.node.owner.approvals import Approvals
    from fedctl.node.owner.place import Place
    from fedctl.node.owner.terms import Policy

MOST_NAMES = 100
LONGEST_NAME = 200
MOST_SLOTS = 64
LONGEST_IDLE_S = 3600.0
UNMEASURED = 2**26
"""Bytes that may come over one connection before the disk is measured anew: others bring theirs."""


def forbid(why: Optional[str]) -> None:
    """Raise Refused where there is a reason to."""
    if why:
        raise Refused(why)


def forbid_unable(policy: Policy) -> None:
    """Refuse to run code that this machine cannot hold to the policy."""
    forbid(next(iter(confinement.unable(policy.limits, policy.network, policy.files)), None))


def confined(policy: Policy, command: List[str], home: Path, shown: List[str]) -> Confined:
    """A command that is held to the policy: of the owner's folder it may read what is `shown`, and no more."""
    own = None
    if policy.files == "own":
        own = fence.around(command[0], home, policy.data.paths, *shown, *policy.commands)
    held = confinement.confined(command, policy.limits, policy.network, own)
    return held.command, held.environment, held.prepare


def names(given: Any) -> List[str]:
    """A short list of short names, none of which an interpreter takes for an option."""
    if not isinstance(given, list) or len(given) > MOST_NAMES:
        raise Refused(f"at most {MOST_NAMES} names may be given")
    for name in given:
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or name[0] == "-":
            raise Refused(f"{name!r:.200} is no name")
    return given


def python(policy: Policy, named: Any) -> str:
    """One of the Pythons that the owner named."""
    forbid(rules.refused_python(policy, named))
    return str(Path(named).expanduser())


def interpreter(policy: Policy, approvals: Approvals, spec: Header) -> Header:
    """The one Python that is meant: of an environment that was approved, or one that the owner named; or none."""
    if "environment" in spec:
        digest = spec["environment"]
        if not isinstance(digest, str) or not DIGEST.match(digest):
            raise Refused(f"not a digest: {digest!r:.200}")
        forbid(rules.refused_environment(policy, digest, approvals))
        return {"environment": digest}
    return {"python": python(policy, spec["python"])} if spec.get("python") else {}


def worker(policy: Policy, approvals: Approvals, spec: Header, folder: Path) -> Header:
    """How a worker may be started: by what is approved, and in the folder of its run whatever was asked for."""
    forbid(rules.refused_worker(policy, spec, approvals))
    if not DIGEST.match(spec["bundle"]):
        raise Refused(f"not a digest: {spec['bundle']!r:.200}")
    return {
        **interpreter(policy, approvals, spec),
        "bundle": spec["bundle"],
        "preload": names(spec["preload"]),
        "slots": min(MOST_SLOTS, int(spec["slots"])),
        "idle_s": min(LONGEST_IDLE_S, float(spec["idle_s"])),
        "cwd": str(folder),
    }


def words(policy: Policy, place: Place, spent: List[List[float]]) -> Header:
    """What a worker has to keep to, where the trainings before it have `spent` so much."""
    terms = policy.differential_privacy
    return {
        "identity": str(place.identity) if place.identity.exists() else None,
        "peers": str(place.peers) if place.peers.exists() else None,
        "least": policy.secure_aggregation.least,
        "required": policy.required,
        "epsilon": None if terms is None else terms.epsilon,
        "delta": 1e-5 if terms is None else terms.delta,
        "spent": spent,
        "network": policy.network,
    }


def awaiting(kind: str, digest: str) -> Header:
    """The answer to what waits for the owner: the run goes on without this node, and asks again."""
    why = f"its owner has not approved this {kind} yet: ask them to run `fedctl node approve {digest[:12]}` there"
    return {"declined": {"may": False, "why": why, "seconds": 0.0}}


class Room:
    """The disk that a key's home may take. It is measured anew where what came since could be too much."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.used: Optional[int] = None
        self.came = 0

    def take(self, policy: Policy, coming: int, *, is_announced: bool = False) -> None:
        """See that so many bytes more may come; of those that are but announced, none is here yet."""
        if coming < 0:
            raise Refused(f"{coming} is no number of bytes")
        most = policy.limits.disk
        if most is None:
            return
        came = self.came + coming
        if is_announced or self.used is None or came >= UNMEASURED or self.used + came > most:
            self.used, self.came = confinement.used_by(self.home), 0
            forbid(confinement.full(policy.limits, self.used, coming))
        self.came += 0 if is_announced else coming
