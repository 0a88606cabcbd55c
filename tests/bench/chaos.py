"""`chaos`: two storms of faults drawn from seeds, over real servers: how many fell, how many runs came through."""

import statistics
import tempfile
from pathlib import Path

from tests.bench.digits import Workshop
from tests.bench.measure import Row
from tests.chaos.__main__ import ROUNDS, Tally, one
from tests.chaos.script import drawn
from tests.chaos.storm import calm

SEEDS = (1, 2)


def chaos(workshop: Workshop) -> list[Row]:
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="fedctl-bench-") as name:
        still = calm(Path(name) / "calm", ROUNDS)
        for seed in SEEDS:
            tally.runs += 1
            if wrong := one(Path(name) / f"seed-{seed}", still, drawn(seed, ROUNDS), tally):
                tally.broken[seed] = wrong
    recoveries = [seconds for each in tally.recoveries.values() for seconds in each]
    kills = tally.recoveries.get("coordinator: kill", [0.0])
    return [
        Row(
            name="chaos: runs survived",
            value=(tally.runs - len(tally.broken)) / tally.runs,
            unit="",
            at_least=1,
            beside=f"{len(recoveries)} faults fell on {tally.runs} runs over 3 servers; half were over within "
            f"{statistics.median(recoveries):.1f} s, a killed coordinator within {statistics.median(kills):.1f} s",
            details={"recoveries": tally.recoveries, "broken": {str(s): w for s, w in tally.broken.items()}},
        )
    ]
