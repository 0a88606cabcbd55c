"""One run of one peer, watched: `python -m tests.bench.peers.stage PEER FOLDER IMAGES OPTIONS`, below the reaper.

Where root may, all of it takes place in a network of its own, whose loopback carries nothing else.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests.bed.server import SYSTEM_PATH
from tests.bench.measure import ROOT
from tests.bench.peers.course import Seen
from tests.bench.peers.ours import fedctl
from tests.bench.peers.theirs import flower

PEERS: Mapping[str, Callable[..., Seen]] = {"fedctl": fedctl, "flower": flower}
LONGEST_S = 2400.0


def staged(peer: str, folder: Path, images: Path, **options: Any) -> tuple[Seen, dict[str, float]]:
    """What was seen of a peer's run in a new folder, and CPU seconds.

    `cpu_s` are those of all its processes, the watching too, and `elsewhere_s` what the machine did beside.
    """
    folder.mkdir()
    before = busy_s(Path("/proc/stat").read_text())
    program = (sys.executable, "-m")
    stage = (*program, "tests.bench.peers.stage", peer, str(folder), str(images), json.dumps(options))
    done = subprocess.run(
        [*apart(), *program, "tests.bench.reaper", *stage],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{peer} failed; its logs are in {folder}")
    cpu_s = json.loads(done.stdout.splitlines()[-1])["cpu_seconds"]
    elsewhere_s = busy_s(Path("/proc/stat").read_text()) - before - cpu_s
    return Seen.read(folder / "seen.json"), {"cpu_s": cpu_s, "elsewhere_s": max(elsewhere_s, 0)}


def busy_s(text: str) -> float:
    """The seconds that all processors have worked, by /proc/stat: all its first columns but the idle and waiting."""
    user, nice, system, _idle, _waiting, *interrupts = map(int, text.split()[1:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


@cache
def apart() -> tuple[str, ...]:
    """The words before a command that give it a loopback of its own; none where that may not be."""
    found = {name: shutil.which(name, path=SYSTEM_PATH) for name in ("unshare", "ip")}
    if os.geteuid() or not all(found.values()):
        return ()
    words = (str(found["unshare"]), "--net", "sh", "-c", f'{found["ip"]} link set lo up && exec "$@"', "sh")
    return words if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0 else ()


if __name__ == "__main__":
    PEERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), **json.loads(sys.argv[4])).write(
        Path(sys.argv[2]) / "seen.json"
    )
