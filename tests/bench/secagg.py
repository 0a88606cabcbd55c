"""`secagg`: what secure aggregation costs a node and the coordinator beside a round without it, in CPU and in bytes.

One thread works, and its own time counts. A node's is that of `receive` and `mask`, what it does with a vector that is
there; the coordinator's is that of `unmask_sum`, where a tenth of the nodes have dropped out with their masks in the
others' vectors. To encode and to decode is beside it. Vectors are copies of one, so the sum is known.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from fedctl.secagg import coordinator, node
from fedctl.secagg.keys import Identity
from fedctl.secagg.messages import Agreement, Sealed, Survivors
from fedctl.secagg.place import Place
from fedctl.secagg.ring import Scale
from fedctl.secagg.secret import Secrets
from tests.bench.digits import Workshop
from tests.bench.measure import Row, median, shown

MILLION = 1_000_000
TIMES = 5
NODE, COORDINATOR = {10: 0.23, 100: 0.016}, {10: 0.36, 100: 0.28}
"""What the protocol's parts alone cost, in CPU seconds; to be within twice that."""


def secagg(workshop: Workshop) -> list[Row]:
    rows = [
        row
        for count, width, degree in ((10, 25 * MILLION, 9), (100, MILLION, 20))
        for row in _round(count, width, degree)
    ]
    return rows + _fixed_point(25 * MILLION)


def _round(count: int, width: int, degree: int) -> list[Row]:
    place = [Place(run="bench", round=1, node=f"n{number:03d}") for number in range(count)]
    identities = {one.node: Identity.ephemeral() for one in place}
    begun = {one.node: node.advertise(identities[one.node], one) for one in place}
    cohort = coordinator.cohort_of("bench", 1, [advert for _, advert in begun.values()], share=0.6, degree=degree)
    secrets: dict[str, Secrets] = {}
    sealed: dict[str, Sealed] = {}
    sharing = []
    for name, (one, _) in begun.items():
        seconds, (secrets[name], sealed[name]) = _timed(lambda one=one: node.share(one, cohort, least=2))
        sharing.append(seconds)
    inboxes = {name: coordinator.inbox_of(cohort, name, sealed) for name in begun}

    plain = np.random.default_rng(0).integers(0, 2**32, width, dtype=np.uint32)
    survivors = tuple(begun)[: count - count // 10]
    masked, masking = {}, []
    for name in survivors:
        vector = plain.copy()

        def mask(name: str = name, vector: Any = vector) -> Secrets:
            return node.mask(node.receive(secrets[name], inboxes[name]), vector)

        seconds, secrets[name] = _timed(mask)
        masking.append(seconds)
        masked[name] = vector
    signatures = {}
    for name in survivors:
        secrets[name], signed = node.survived(secrets[name], identities[name], Survivors(nodes=survivors))
        signatures[name] = signed.signature
    agreement = Agreement(nodes=survivors, signatures=signatures)
    revealing, revealed = [], {}
    for name in survivors:
        seconds, revealed[name] = _timed(lambda name=name: node.unmask(secrets[name], agreement))
        revealing.append(seconds)
    summing = []
    for _ in range(TIMES):
        seconds, total = _timed(
            lambda: coordinator.unmask_sum(cohort, tuple(begun), survivors, masked.values(), revealed)
        )
        summing.append(seconds)
    if not np.array_equal(total, plain * np.uint32(len(survivors))):
        raise RuntimeError("the sum is not the sum of the vectors")

    first = survivors[0]
    up = (begun[first][1], sealed[first], revealed[first])
    down = (cohort, inboxes[first], Survivors(nodes=survivors), agreement)
    sent, got = (sum(len(json.dumps(one.to_json()).encode()) for one in messages) for messages in (up, down))
    what = f"secagg: {count} nodes, {width // MILLION}M parameters, {degree} neighbours"
    about = f"besides {shown(median(sharing), 's')} to share and {shown(median(revealing), 's')} to reveal"
    size = f"{shown(sent / 1e3, 'kB')} up and {shown(got / 1e3, 'kB')} down beside {shown(4 * width / 1e6, 'MB')}"
    return [
        Row(name=f"{what}, a node", value=median(masking), unit="s", at_most=2 * NODE[count], beside=about),
        Row(
            name=f"{what}, the coordinator",
            value=median(summing),
            unit="s",
            at_most=2 * COORDINATOR[count],
            beside=f"{count // 10} dropped",
        ),
        Row(
            name=f"{what}, upload",
            value=(4 * width + sent) / (4 * width),
            unit="x",
            at_most=1.002,
            beside=size,
            details={"up": sent, "down": got},
        ),
    ]


def _fixed_point(width: int) -> list[Row]:
    scale = Scale.of(1.0, 10)
    values = np.random.default_rng(0).normal(0, 0.1, width).astype(np.float32)
    elements, _ = scale.encode(values)
    return [
        Row(name=f"secagg: {what} 25M parameters", value=median(_timed(work)[0] for _ in range(TIMES)), unit="s")
        for what, work in (
            ("encode", lambda: scale.encode(values, out=elements)),
            ("decode", lambda: scale.decode(elements, np.float32)),
        )
    ]


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.thread_time()
    found = work()
    return time.thread_time() - began, found
