"""How a node stands, for its owner: who may ask it, for what, what waits for them, and what has left."""

from __future__ import annotations

import os
import time

from fedctl.node.agent import examine
from fedctl.node.owner import confinement, identity, wording
from fedctl.node.owner.approvals import Approvals, Asked
from fedctl.node.owner.current import policy_of
from fedctl.node.owner.place import Place
from fedctl.node.owner.trainings import Trainings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List

DIGITS = 12


def standing(place: Place) -> Dict[str, Any]:
    """All of it, as one JSON object; raises OwnerError for a policy that cannot be followed."""
    policy, approvals, trainings = policy_of(place.policy), Approvals(place.folder), Trainings(place.trainings)
    is_there = place.folder.is_dir()
    head, trouble = examine(place.ledger) if place.ledger.exists() else (None, None)
    terms = policy.differential_privacy
    return {
        "folder": str(place.folder),
        "program": place.version(),
        "identity": identity.fingerprint(place),
        "keys": [
            {"fingerprint": key.fingerprint, "comment": key.comment, "at": key.at, "home": str(key.home)}
            for key in place.enrolled()
        ],
        "policy": {
            "file": str(place.policy) if place.policy.exists() else None,
            "terms": wording.summary(policy),
            "unable": [*confinement.unable(policy.limits, policy.network, policy.files), *risks()],
        },
        "pending": [told(asked) for asked in approvals.pending()],
        "approved": [told(asked) for asked in approvals.approved()],
        "peers": identity.peers(place),
        "trainings": trainings.count("", "") if is_there else 0,
        "epsilon": {
            "spent": trainings.epsilon() if is_there else None,
            "allowed": terms.epsilon if terms else None,
            "delta": terms.delta if terms else None,
        },
        "ledger": {"head": head, "trouble": trouble},
    }


def risks() -> List[str]:
    """What no policy helps against."""
    return ["this account is root: enroll the key in an account of its own"] if os.geteuid() == 0 else []


def told(asked: Asked) -> Dict[str, Any]:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(asked.at))
    return {"digest": asked.digest, "kind": asked.kind, "at": at, "asker": asked.asker}


def lines(found: Dict[str, Any]) -> Iterator[str]:
    """The same for people, a line each."""
    if not found["keys"]:
        yield "No key is enrolled: `fedctl node enroll --key coordinator.pub` lets a coordinator in."
    if not (found["identity"] or found["peers"] or found["ledger"]["head"]):
        return
    yield f"identity   {found['identity'] or 'none yet'}"
    for key in found["keys"]:
        yield f"key        {key['fingerprint']}  {key['comment']}  since {key['at']}"
        yield f"           keeps its files in {key['home']}"
    if found["keys"]:
        yield from below("policy", found["policy"]["terms"])
        yield from below("attention", found["policy"]["unable"])
    yield from below(
        "waits", [f"{each['kind']} {each['digest'][:DIGITS]}, of {each['asker']}" for each in found["pending"]]
    )
    if found["pending"]:
        yield f"           `fedctl node approve {found['pending'][0]['digest'][:DIGITS]}` shows it, and asks"
    yield from below("approved", [f"{each['kind']} {each['digest'][:DIGITS]}" for each in found["approved"]])
    yield from below("pinned", [f"{name} {pinned}" for name, pinned in found["peers"].items()])
    yield f"trainings  {found['trainings']}"
    if found["epsilon"]["spent"] is not None or found["epsilon"]["allowed"] is not None:
        spent, allowed = found["epsilon"]["spent"], found["epsilon"]["allowed"]
        told = "none told yet" if spent is None else f"{spent:.3g}, the largest that one training told"
        yield f"epsilon    {told}{'' if allowed is None else f'; all together may spend {allowed:g}'}"
    head = found["ledger"]["head"]
    yield f"ledger     {head['n'] if head else 0} entries{', ' + head['hash'][:DIGITS] if head else ''}"
    if found["ledger"]["trouble"]:
        yield f"           attention: {found['ledger']['trouble']}"


def below(title: str, entries: List[str]) -> Iterator[str]:
    """Entries under one word."""
    for number, entry in enumerate(entries):
        yield f"{title if number == 0 else '':<10} {entry}"
