"""What crosses the wire in secure aggregation, as frozen records with strict JSON forms; bytes are base64 there.

| task | to the node | back |
| --- | --- | --- |
| keys | nothing | `Advert` |
| shares | `Cohort` | `Sealed`, a share for each neighbour |
| train | `Inbox`, what the neighbours sealed for it | the masked vector |
| agree | `Survivors` | `Signed` |
| unmask | `Agreement` | `Revealed` |

`from_json` refuses with a ValueError what is not exactly right; whether signatures hold is for `node` and
`coordinator` to say. Standard library only.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedctl.secagg.graph import COMPLETE, fewest, neighbours
from fedctl.secagg.place import Place, a_node, a_round, a_run, bound
from fedctl.secagg.shamir import SHARE_SIZE
from fedctl.secagg.wire import a_names, bytes_by_name, from_base64, text_by_name, to_base64
from fedctl.strictjson import a_count, a_list, fields_of

KEY_SIZE, SIGNATURE_SIZE = 32, 64
SEALED_SIZE = 2 * SHARE_SIZE + 16
"""Two shares and what ChaCha20-Poly1305 adds, in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advert:
    """The keys of one node for one round, signed by its identity.

    `identity` is its Ed25519 public key, `mask_key` and `seal_key` are X25519 ones (32 bytes each); `seed_digest` binds
    it to its self seed (32 bytes); `signature` is over all of it and its place (64 bytes).
    """

    node: str
    identity: bytes
    mask_key: bytes
    seal_key: bytes
    seed_digest: bytes
    signature: bytes

    def signed(self, run: str, round: int) -> bytes:
        """What the signature is over."""
        keys = (self.identity, self.mask_key, self.seal_key, self.seed_digest)
        return Place(run=run, round=round, node=self.node).bound("fedctl advert", *keys)

    def to_json(self) -> dict[str, Any]:
        return {"node": self.node} | {name: to_base64(getattr(self, name)) for name in _ADVERTISED}

    @classmethod
    def from_json(cls, value: Any) -> "Advert":
        fields = fields_of(value, cls)
        keys = {name: from_base64(fields[name], size) for name, size in _ADVERTISED.items()}
        return cls(node=a_node(fields["node"]), **keys)


_ADVERTISED = {
    "identity": KEY_SIZE,
    "mask_key": KEY_SIZE,
    "seal_key": KEY_SIZE,
    "seed_digest": KEY_SIZE,
    "signature": SIGNATURE_SIZE,
}


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Who takes part in a round: everybody sees the same one, and all that follows is bound to its digest.

    Each node has `degree` neighbours, and shares its secrets among them and itself; `threshold` of these `degree` + 1
    shares, more than half, tell a secret. `adverts` are by name, in the order of names. No two have a key in common.
    """

    run: str
    round: int
    adverts: Mapping[str, Advert]
    degree: int
    threshold: int

    def __post_init__(self) -> None:
        count = len(self.adverts)
        if count < 2:
            raise ValueError("a cohort of one would tell its update")
        names = [advert.node for advert in self.adverts.values()]
        if not sorted(names) == names == list(self.adverts):
            raise ValueError("adverts are by name, in the order of names")
        for name in ("identity", "mask_key", "seal_key", "seed_digest"):
            if len({getattr(advert, name) for advert in self.adverts.values()}) < count:
                raise ValueError(f"two nodes of the cohort have the same {name}")
        is_ring = count > COMPLETE and self.degree % 2 == 0 and fewest(count) <= self.degree
        if self.degree != count - 1 and not (is_ring and self.degree < count - 1):
            raise ValueError(f"{self.degree} neighbours are not for {count} nodes")
        if not self.holders < 2 * self.threshold <= 2 * self.holders:
            raise ValueError(f"the threshold should be above half of {self.holders} holders, not {self.threshold}")

    @property
    def holders(self) -> int:
        """How many hold a share of each secret: its node and its neighbours."""
        return self.degree + 1

    @property
    def quorum(self) -> int:
        """How many of the cohort must share, survive and sign: the part of it that `threshold` is of the holders."""
        return -(-self.threshold * len(self.adverts) // self.holders)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over all of it (32 bytes)."""
        adverts = [part for one in self.adverts.values() for part in (one.signed(self.run, self.round), one.signature)]
        numbers = (str(self.round), str(self.degree), str(self.threshold))
        return hashlib.sha256(bound("fedctl cohort", self.run, *numbers, *adverts)).digest()

    @cached_property
    def neighbours(self) -> Mapping[str, frozenset[str]]:
        """Whom each node exchanges masks and shares with; drawn by the digest, so that nobody alone decides."""
        return neighbours(list(self.adverts), self.digest, self.degree)

    @cached_property
    def points(self) -> Mapping[str, int]:
        """At which point each node holds its share of any secret: its place in the order of names, from 1."""
        return {node: point for point, node in enumerate(self.adverts, start=1)}

    def bound(self, purpose: str, *parts: str | bytes) -> bytes:
        """Bytes that say a purpose, this cohort and these parts."""
        return bound(purpose, self.digest, *parts)

    def agreed(self, sharers: tuple[str, ...], survivors: tuple[str, ...]) -> bytes:
        """What a node signs: who shared and who survived."""
        return self.bound("fedctl survivors", bound(*sharers), bound(*survivors))

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "round": self.round,
            "adverts": [advert.to_json() for advert in self.adverts.values()],
            "degree": self.degree,
            "threshold": self.threshold,
        }

    @classmethod
    def from_json(cls, value: Any) -> "Cohort":
        fields = fields_of(value, cls)
        adverts = [Advert.from_json(each) for each in a_list(fields["adverts"], "adverts")]
        a_names([advert.node for advert in adverts])
        return cls(
            run=a_run(fields["run"]),
            round=a_round(fields["round"]),
            adverts={advert.node: advert for advert in adverts},
            degree=a_count(fields["degree"], "degree"),
            threshold=a_count(fields["threshold"], "threshold"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A node's shares, each sealed for one neighbour, by the neighbour's name (82 bytes each)."""

    shares: Mapping[str, bytes]

    def to_json(self) -> dict[str, Any]:
        return {"shares": text_by_name(self.shares)}

    @classmethod
    def from_json(cls, value: Any) -> "Sealed":
        return cls(shares=bytes_by_name(fields_of(value, cls)["shares"], SEALED_SIZE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbox:
    """Who of the whole cohort sent shares (in order), and what the node's neighbours sealed for it, by their names."""

    sharers: tuple[str, ...]
    shares: Mapping[str, bytes]

    def to_json(self) -> dict[str, Any]:
        return {"sharers": list(self.sharers), "shares": text_by_name(self.shares)}

    @classmethod
    def from_json(cls, value: Any) -> "Inbox":
        fields = fields_of(value, cls)
        return cls(sharers=a_names(fields["sharers"]), shares=bytes_by_name(fields["shares"], SEALED_SIZE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivors:
    """Whose masked vectors are to be in the sum (in order)."""

    nodes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"nodes": list(self.nodes)}

    @classmethod
    def from_json(cls, value: Any) -> "Survivors":
        return cls(nodes=a_names(fields_of(value, cls)["nodes"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """One node's signature on the sharers and the survivors of a round (64 bytes)."""

    signature: bytes

    def to_json(self) -> dict[str, Any]:
        return {"signature": to_base64(self.signature)}

    @classmethod
    def from_json(cls, value: Any) -> "Signed":
        return cls(signature=from_base64(fields_of(value, cls)["signature"], SIGNATURE_SIZE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The survivors (in order), and the signatures on them by name."""

    nodes: tuple[str, ...]
    signatures: Mapping[str, bytes]

    def to_json(self) -> dict[str, Any]:
        return {"nodes": list(self.nodes), "signatures": text_by_name(self.signatures)}

    @classmethod
    def from_json(cls, value: Any) -> "Agreement":
        fields = fields_of(value, cls)
        return cls(nodes=a_names(fields["nodes"]), signatures=bytes_by_name(fields["signatures"], SIGNATURE_SIZE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Revealed:
    """The shares that a node holds of the self seeds of survivors, and of the mask keys of who dropped out, by name."""

    seeds: Mapping[str, bytes]
    keys: Mapping[str, bytes]

    def to_json(self) -> dict[str, Any]:
        return {"seeds": text_by_name(self.seeds), "keys": text_by_name(self.keys)}

    @classmethod
    def from_json(cls, value: Any) -> "Revealed":
        fields = fields_of(value, cls)
        return cls(**{name: bytes_by_name(fields[name], SHARE_SIZE) for name in ("seeds", "keys")})
