"""`far`: a model over a line of 100 ms there and back, beside `scp` over the same."""

import math
import time
from pathlib import Path

from tests.bed.loopback import LoopbackBed
from tests.bench.digits import Workshop
from tests.bench.measure import Row, interleaved, median, ratio, run, shown
from tests.bench.servers import MB, client, loopback, open_line, openssh
from tests.bench.stream import write_noise

SIZE = 64 * 2**20
ONE_WAY_S = 0.05
TIMES = 3


def far(workshop: Workshop) -> list[Row]:
    with loopback("alice", relayed=True) as bed:
        source = bed.folder / "source"
        digest = write_noise(source, SIZE)
        (bed.folder / "target").mkdir()
        client(bed, "exchanges", node="alice", count=1)  # installs the agent
        bed.relay(bed.nodes["alice"]).shape(delay=ONE_WAY_S)
        open_line(bed, "alice")
        return [_one_way(bed, source, digest, up=up) for up in (False, True)]


def _one_way(bed: LoopbackBed, source: Path, digest: str, *, up: bool) -> Row:
    arguments = {"node": "alice", "source": str(source), "target": str(bed.folder / "target"), "digest": digest}

    def fedctl() -> float:
        found = client(bed, "move", up=up, **arguments)
        return math.nan if found is None else float(found["seconds"])

    found = interleaved(
        {
            "fedctl": fedctl,
            "scp": lambda: _scp(bed, source, up=up, login=False),
            "scp with its login": lambda: _scp(bed, source, up=up, login=True),
        },
        TIMES,
    )
    speed = {name: SIZE / MB / median(seconds) for name, seconds in found.items()}
    return Row(
        name=f"far: 64 MiB {'up' if up else 'down'}, 100 ms, of scp",
        value=ratio(found["scp"], found["fedctl"]),
        unit="x",
        at_least=2.4,
        beside=f"{shown(speed['fedctl'], 'MB/s')} beside {shown(speed['scp'], 'MB/s')} of `scp` "
        f"({shown(speed['scp with its login'], 'MB/s')} with its login)",
        details={"seconds": found, "mb_per_s": speed},
    )


def _scp(bed: LoopbackBed, source: Path, *, up: bool, login: bool) -> float:
    ends = [str(source), f"alice:{bed.folder}/target/scp"] if up else [f"alice:{source}", f"{bed.folder}/target/scp"]
    (bed.folder / "target" / "scp").unlink(missing_ok=True)
    began = time.perf_counter()
    run(openssh(bed, "scp", *ends, login=login))
    return time.perf_counter() - began
