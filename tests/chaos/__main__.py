"""`python -m tests.chaos`: storms drawn from seeds, one after another, for as long as asked; then a table."""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from tests.chaos.invariants import INVARIANTS
from tests.chaos.script import COORDINATOR, Fault, drawn
from tests.chaos.storm import Place, Storm, calm, open_bed

ROUNDS = 16


@dataclass(slots=True)
class Tally:
    """What fell, how long each recovery took, in seconds by kind of fault, and what was broken in the end."""

    recoveries: dict[str, list[float]] = field(default_factory=dict)
    broken: dict[int, list[str]] = field(default_factory=dict)
    """By seed."""
    runs: int = 0

    def add(self, storm: Storm) -> None:
        for blow in storm.blows:
            kind = "coordinator" if blow.fault.who == COORDINATOR else "node"
            self.recoveries.setdefault(f"{kind}: {blow.fault.what}", []).append(blow.seconds)

    def table(self) -> str:
        lines = [f"{'fault':32} {'times':>5} {'median':>8} {'longest':>8}  seconds to recover"]
        lines += [
            f"{what:32} {len(seconds):5} {statistics.median(seconds):8.2f} {max(seconds):8.2f}"
            for what, seconds in sorted(self.recoveries.items())
        ]
        faults = sum(map(len, self.recoveries.values()))
        return "\n".join([*lines, "", f"{faults} faults, {self.runs - len(self.broken)} of {self.runs} runs survived"])


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    ends, tally = time.monotonic() + 60 * arguments.minutes, Tally()
    with tempfile.TemporaryDirectory(prefix="fedctl-chaos-") as name:
        still = calm(Path(name) / "calm", ROUNDS)
        for seed in count(arguments.seed):
            tally.runs += 1
            if wrong := one(Path(name) / f"seed-{seed}", still, drawn(seed, ROUNDS), tally):
                tally.broken[seed] = wrong
            print(f"seed {seed}: {'survived' if not wrong else '; '.join(wrong)}", flush=True)
            if time.monotonic() > ends:
                break
    print(tally.table())
    return 1 if tally.broken else 0


def one(folder: Path, still: Place, script: Sequence[Fault], tally: Tally) -> list[str]:
    """Let a script fall on a run; returns what is wrong after it."""
    folder.mkdir()
    with open_bed(folder) as bed:
        storm = Storm(Place(folder / "run", ROUNDS, bed), bed, script)
        try:
            storm.go()
            return [f"{check.__name__}: {wrong}" for check in INVARIANTS if (wrong := check(storm, still))]
        except TimeoutError as error:
            return [str(error)]
        finally:
            tally.add(storm)
            storm.close()


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="after these no further storm begins (10)")
    parser.add_argument("--seed", type=int, default=1, help="of the first storm; the next ones count on (1)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
