"""`resend`: how much of a large file travels twice when its line breaks at nine tenths of it, each way."""

from typing import Literal

from tests.bench.digits import Workshop
from tests.bench.measure import Row
from tests.bench.servers import MB, client, loopback
from tests.bench.stream import write_noise

SIZE = 500 * 10**6 // 2**20 * 2**20
BREAK_AT = 0.9


def resend(workshop: Workshop) -> list[Row]:
    with loopback("alice", relayed=True) as bed:
        source, target = bed.folder / "source", bed.folder / "target"
        digest = write_noise(source, SIZE)
        target.mkdir()
        relay = bed.relay(bed.nodes["alice"])
        ways: tuple[Literal["up", "down"], ...] = ("up", "down")
        rows = []
        for way in ways:
            before, lines = relay.carried(way), relay.connections()
            relay.cut_after(int(SIZE * BREAK_AT), way)
            client(bed, "move_on", node="alice", source=str(source), target=str(target), digest=digest, up=way == "up")
            again = relay.carried(way) - before - SIZE
            rows.append(
                Row(
                    name=f"resend: after a break at {BREAK_AT:.0%}, {way}",
                    value=100 * again / SIZE,
                    unit="%",
                    at_most=11,
                    beside=f"{again / MB:.1f} of {SIZE / MB:.0f} MB, with all that SSH adds to both tries",
                    details={"bytes": again, "lines": relay.connections() - lines},
                )
            )
    return rows
