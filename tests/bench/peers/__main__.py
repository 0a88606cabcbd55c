"""`python -m tests.bench.peers`: the same federation by Flower and by fedctl, one after the other, in one table.

Four nodes of this machine train a small network on their uneven shares of MNIST. Flower runs as it is deployed, with a
SuperLink and SuperNodes; fedctl over SSH, without and with codecs. Times are worth something on an idle machine alone.
"""

import argparse
import json
import shutil
import sys
import tempfile
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from tests.bench.measure import Row, machine, run, table
from tests.bench.peers import ours, theirs
from tests.bench.peers.course import figures
from tests.bench.peers.images import TESTED, accuracy, write
from tests.bench.peers.stage import apart, staged
from tests.bench.peers.telling import rows, side_by_side

NODES = 4
RESULTS = Path(__file__).parents[1] / "results"
PLAIN = "none"
CODECS = (PLAIN, "{up: [delta, topk: {keep: 0.3}, int4, zstd], down: [delta, int4, zstd]}")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    before, at = machine(), datetime.now(UTC)
    found: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    version = run([str(theirs.BIN / "python"), "-c", "import flwr, torch; print(flwr.__version__)"]).strip()
    run([str(ours.BIN / "python"), "-c", "import torch, pytorch_lightning"])  # both sides' files are in memory now
    flower, codecs = f"Flower {version}", named(arguments.codec or CODECS)
    folder = Path(tempfile.mkdtemp(prefix="fedctl-peers-"))
    images = folder / "images.npz"
    shares = write(images, NODES)
    for number, name in enumerate([*([] if arguments.without_flower else [flower]), *codecs]):
        print(f"{name} ...", file=sys.stderr, flush=True)
        peer, options = ("fedctl", {"codec": codecs[name]}) if name in codecs else ("flower", {})
        try:
            seen, spent = staged(peer, folder / f"{number}", images, nodes=NODES, rounds=arguments.rounds, **options)
        except Exception:  # one that fails takes nothing from the others
            failed[name] = traceback.format_exc()
            print(failed[name], file=sys.stderr)
        else:
            found[name] = figures(seen, **spent) | {"accuracy": accuracy(Path(seen.course.model), images)}
    if not failed:
        shutil.rmtree(folder)
    judged: list[Row] = []
    for name, codec in codecs.items():
        if name in found:
            judged += rows(name, found[name], found.get(flower), is_coded=codec != PLAIN)
    notes = [
        f"{NODES} nodes with {shares} images of MNIST, {TESTED} for the test; {arguments.rounds} rounds of one epoch",
        f"switched off in Flower: {theirs.SWITCHED_OFF}",
        *(f"{name}: {codec}" for name, codec in codecs.items() if codec != PLAIN),
        "between machines: what relays before the nodes carried, both ways; loopback in all: "
        + ("that of a network of the run's own" if apart() else "that of the whole machine, whoever else uses it"),
    ]
    print(side_by_side(found), table(judged), "\n".join(notes), sep="\n\n")
    after = machine()
    path = arguments.json or RESULTS / f"peers-{at:%Y%m%dT%H%M%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "at": at.isoformat(timespec="seconds"),
        "machine": {"cpus": after["cpus"], "load_before": before["load"], "load_after": after["load"]},
        "notes": notes,
        "found": found,
        "rows": [row.to_json() for row in judged],
        "failed": failed,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{after['cpus']} cpus, load {before['load']} before and {after['load']} after; written to {path}")
    return 1 if failed else 0


def named(codecs: Sequence[str]) -> dict[str, str]:
    """Short names of runs of fedctl, and their codecs."""
    letters = iter(ascii_lowercase)
    return {"fedctl" if codec == PLAIN else f"fedctl, codec {next(letters)}": codec for codec in codecs}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    parser.add_argument(
        "--codec",
        action="append",
        metavar="YAML",
        help=f"a run of fedctl with this codec (default: {', '.join(CODECS)})",
    )
    parser.add_argument("--rounds", type=_three_or_more, default=10, metavar="N", help="(default: 10)")
    parser.add_argument("--without-flower", action="store_true", help="run fedctl alone")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write all of it (default: results/)")
    return parser.parse_args(argv)


def _three_or_more(text: str) -> int:
    if (number := int(text)) < 3:
        raise argparse.ArgumentTypeError("figures need three rounds")
    return number


if __name__ == "__main__":
    sys.exit(main())
