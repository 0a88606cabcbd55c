"""A round of secure aggregation as it is played over the wire: every message and every secret goes through JSON."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedctl.secagg import coordinator, node
from fedctl.secagg.keys import Identity
from fedctl.secagg.messages import Advert, Agreement, Cohort, Inbox, Revealed, Sealed, Signed, Survivors
from fedctl.secagg.place import Place
from fedctl.secagg.secret import Secrets

RUN, ROUND = "digits-20261121-235007", 3
LEAST = 2


def names(count: int) -> list[str]:
    return [f"n{number:03d}" for number in range(count)]


def carried(record):
    """The record as the other side reads it."""
    return type(record).from_json(json.loads(json.dumps(record.to_json())))


@dataclass
class Played:
    """A round so far. Each phase takes the nodes that go along, all of them where none are named."""

    nodes: Sequence[str]
    share: float = 2 / 3
    degree: int | None = None
    run: str = RUN
    round: int = ROUND
    identities: dict[str, Identity] = field(default_factory=dict)
    secrets: dict[str, Secrets] = field(default_factory=dict)
    adverts: dict[str, Advert] = field(default_factory=dict)
    sealed: dict[str, Sealed] = field(default_factory=dict)
    masked: dict[str, np.ndarray] = field(default_factory=dict)
    signatures: dict[str, bytes] = field(default_factory=dict)
    revealed: dict[str, Revealed] = field(default_factory=dict)
    cohort: Cohort | None = None

    @property
    def sharers(self) -> tuple[str, ...]:
        return tuple(sorted(self.sealed))

    @property
    def survivors(self) -> tuple[str, ...]:
        return tuple(sorted(self.masked))

    def advertise(self) -> "Played":
        for name in self.nodes:
            self.identities.setdefault(name, Identity.ephemeral())
            place = Place(run=self.run, round=self.round, node=name)
            secrets, advert = node.advertise(self.identities[name], place)
            self.secrets[name] = carried(secrets)
            self.adverts[name] = coordinator.check_advert(advert.to_json(), self.run, self.round, name)
        return self

    def gather(self, who: Collection[str] | None = None) -> "Played":
        adverts = [self.adverts[name] for name in (self.nodes if who is None else who)]
        self.cohort = coordinator.cohort_of(self.run, self.round, adverts, share=self.share, degree=self.degree)
        return self

    def deal(self, who: Collection[str] | None = None) -> "Played":
        for name in self.cohort.adverts if who is None else who:
            secrets, sealed = node.share(self.secrets[name], carried(self.cohort), least=LEAST)
            self.secrets[name] = carried(secrets)
            self.sealed[name] = coordinator.check_sealed(sealed.to_json(), self.cohort, name)
        return self

    def inbox(self, name: str) -> Inbox:
        return carried(coordinator.inbox_of(self.cohort, name, self.sealed))

    def mask(self, vectors: Mapping[str, np.ndarray]) -> "Played":
        for name, vector in vectors.items():
            masked = vector.copy()
            received = carried(node.receive(self.secrets[name], self.inbox(name)))
            self.secrets[name] = carried(node.mask(received, masked))
            self.masked[name] = masked
        return self

    def agree(self, who: Collection[str] | None = None) -> "Played":
        for name in self.survivors if who is None else who:
            survivors = carried(Survivors(nodes=self.survivors))
            secrets, signed = node.survived(self.secrets[name], self.identities[name], survivors)
            self.secrets[name] = carried(secrets)
            self.signatures[name] = self.checked(name, signed)
        return self

    def checked(self, name: str, signed: Signed) -> bytes:
        return coordinator.check_signed(signed.to_json(), self.cohort, name, self.sharers, self.survivors)

    def agreement(self) -> Agreement:
        return carried(Agreement(nodes=self.survivors, signatures=self.signatures))

    def unmask(self, who: Collection[str] | None = None) -> "Played":
        for name in self.signatures if who is None else who:
            said = node.unmask(self.secrets[name], self.agreement())
            told = coordinator.check_revealed(said.to_json(), self.cohort, name, self.sharers, self.survivors)
            self.revealed[name] = told
        return self

    def total(self) -> np.ndarray:
        vectors = (self.masked[name] for name in self.survivors)
        return coordinator.unmask_sum(self.cohort, self.sharers, self.survivors, vectors, self.revealed)


def vectors_of(who: Sequence[str], width: int, bits: int = 32, seed: int = 0) -> dict[str, np.ndarray]:
    """Any elements of the ring, by node."""
    chance = np.random.default_rng(seed)
    return {name: chance.integers(0, 2**bits, width, dtype=f"u{bits // 8}", endpoint=False) for name in who}


def dealt(count: int, **options) -> Played:
    """A round whose shares are dealt."""
    return Played(names(count), **options).advertise().gather().deal()
