"""What a node keeps of a round of secure aggregation, and the order in which it forgets.

A file of it is 0600, is written before an answer that follows from it leaves the node, and is deleted after the round.
The functions of `node` return the next `Secrets`: what was answered once stands in them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedctl.secagg.messages import KEY_SIZE, Advert, Cohort, Sealed
from fedctl.secagg.place import Place
from fedctl.secagg.shamir import SHARE_SIZE
from fedctl.secagg.wire import a_names, bytes_by_name, from_base64, text_by_name, to_base64
from fedctl.strictjson import a_count, fields_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Private:
    """What masks are made of, until they are made: the self seed, and the private keys of masks and seals."""

    seed: bytes = field(repr=False)
    mask_key: bytes = field(repr=False)
    seal_key: bytes = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        return {name: to_base64(getattr(self, name)) for name in ("seed", "mask_key", "seal_key")}

    @classmethod
    def from_json(cls, value: Any) -> "Private":
        return cls(**{name: from_base64(text, KEY_SIZE) for name, text in fields_of(value, cls).items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """A node's secrets for one round, from its advert on.

    `private` is None once the vector was masked. From the shares on there are the `cohort`, the `least` number of nodes
    that a sum may be of, what was `sealed` for the neighbours, and the shares of others' self seeds (`seeds`) and mask
    keys (`keys`) that are held, first only this node's own. `sharers` and `survivors` are None until they are known.
    """

    place: Place
    advert: Advert
    private: Private | None
    cohort: Cohort | None = None
    least: int = 0
    sealed: Sealed | None = None
    seeds: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    keys: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    sharers: tuple[str, ...] | None = None
    survivors: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "place": self.place.to_json(),
            "advert": self.advert.to_json(),
            "private": self.private and self.private.to_json(),
            "cohort": self.cohort and self.cohort.to_json(),
            "least": self.least,
            "sealed": self.sealed and self.sealed.to_json(),
            "seeds": text_by_name(self.seeds),
            "keys": text_by_name(self.keys),
            "sharers": None if self.sharers is None else list(self.sharers),
            "survivors": None if self.survivors is None else list(self.survivors),
        }

    @classmethod
    def from_json(cls, value: Any) -> "Secrets":
        fields = fields_of(value, cls)
        private, cohort, sealed, sharers, survivors = (
            fields[name] for name in ("private", "cohort", "sealed", "sharers", "survivors")
        )
        return cls(
            place=Place.from_json(fields["place"]),
            advert=Advert.from_json(fields["advert"]),
            private=None if private is None else Private.from_json(private),
            cohort=None if cohort is None else Cohort.from_json(cohort),
            least=a_count(fields["least"], "least"),
            sealed=None if sealed is None else Sealed.from_json(sealed),
            seeds=bytes_by_name(fields["seeds"], SHARE_SIZE),
            keys=bytes_by_name(fields["keys"], SHARE_SIZE),
            sharers=None if sharers is None else a_names(sharers),
            survivors=None if survivors is None else a_names(survivors),
        )
