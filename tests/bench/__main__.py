"""`python -m tests.bench`: what fedctl costs, in one table and one file of JSON. Nothing is judged here.

Each benchmark is a file here with a function from the `Workshop` to its rows, and a line in `BENCHMARKS`.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.aggregate import aggregate
from tests.bench.buffered import buffered
from tests.bench.chaos import chaos
from tests.bench.codecs import codecs
from tests.bench.cpu import cpu
from tests.bench.dead_line import dead_line
from tests.bench.digits import Workshop
from tests.bench.diloco import diloco
from tests.bench.exchange import exchange
from tests.bench.far import far
from tests.bench.goal import goal
from tests.bench.hello import hello
from tests.bench.idle import idle
from tests.bench.large import large
from tests.bench.learning import learning
from tests.bench.many import many
from tests.bench.measure import Row, machine, table
from tests.bench.privacy import privacy
from tests.bench.provisioning import provisioning
from tests.bench.recover import recover
from tests.bench.resend import resend
from tests.bench.rounds import rounds
from tests.bench.secagg import secagg
from tests.bench.ssh_rounds import ssh_rounds
from tests.bench.start import start
from tests.bench.startup import startup
from tests.bench.stream import stream

BENCHMARKS: Mapping[str, Callable[[Workshop], list[Row]]] = {
    "startup": startup,
    "round": rounds,
    "start": start,
    "cpu": cpu,
    "aggregate": aggregate,
    "stream": stream,
    "codecs": codecs,
    "secagg": secagg,
    "large": large,
    "buffered": buffered,
    "many": many,
    "exchange": exchange,
    "far": far,
    "hello": hello,
    "provisioning": provisioning,
    "ssh-rounds": ssh_rounds,
    "dead-line": dead_line,
    "chaos": chaos,
    "recover": recover,
    "resend": resend,
    "idle": idle,
    "learning": learning,
    "goal": goal,
    "diloco": diloco,
    "privacy": privacy,
}
RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    before, began, at = machine(), time.monotonic(), datetime.now(UTC)
    rows: list[Row] = []
    failed: dict[str, str] = {}
    with Workshop() as workshop:
        for name in arguments.only or BENCHMARKS:
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                rows += BENCHMARKS[name](workshop)
            except Exception:  # one that fails takes nothing from the others
                failed[name] = traceback.format_exc()
                print(failed[name], file=sys.stderr)
    after = machine()
    print(table(rows))
    print(
        f"\n{after['cpus']} cpus, load {_load(before)} before and {_load(after)} after, "
        f"{time.monotonic() - began:.0f} s; medians; * misses its target"
    )
    path = arguments.json or RESULTS / f"{at:%Y%m%dT%H%M%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "at": at.isoformat(timespec="seconds"),
        "machine": {"cpus": after["cpus"], "load_before": before["load"], "load_after": after["load"]},
        "rows": [row.to_json() for row in rows],
        "failed": failed,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written to {path}")
    return 1 if failed else 0


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write all of it (default: results/)")
    return parser.parse_args(argv)


def _load(found: Mapping[str, Sequence[float]]) -> str:
    return " ".join(f"{load:.2f}" for load in found["load"])


if __name__ == "__main__":
    sys.exit(main())
