"""Memory does not grow with the number of updates: 16 updates of 100 MB take what 5 of them take.

Anonymous memory (RssAnon) is what counts: the pages of a mapped file can be given back at any time.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedctl.weights import save

MB = 1_000_000
LARGEST, TENSORS = 20 * MB, 5
MODEL = LARGEST * TENSORS

PROGRAM = """
import json, sys, threading
from pathlib import Path

from fedctl.aggregation import aggregate_round
from fedctl.federation import Named
from fedctl.strategies import build

folder, strategy, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def anonymous():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024

def aggregate(source, files):
    aggregate_round(
        source / "0.safetensors",
        {f"node-{n:02d}": (source / f"{n}.safetensors", n + 1) for n in range(files)},
        memory=None,
        strategy=build(Named(name=strategy)),
        model_out=folder / f"model-{count}.out",
        memory_out=folder / f"memory-{count}.out",
    )

aggregate(folder / "small", 5)
peak = start = anonymous()
over = threading.Event()

def sample():
    global peak
    while not over.wait(0.003):
        peak = max(peak, anonymous())

thread = threading.Thread(target=sample)
thread.start()
aggregate(folder, count)
over.set()
thread.join()
print(json.dumps(peak - start))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five files of 100 MB under sixteen names, since what is read is counted and not what is stored."""
    folder = tmp_path_factory.mktemp("updates")
    (folder / "small").mkdir()
    for number in range(5):
        value = torch.full((LARGEST // 4,), float(number))
        save(folder / f"{number}.safetensors", {f"layer{n}": value for n in range(TENSORS)})
        save(folder / "small" / f"{number}.safetensors", {"layer0": value[:10]})
    for number in range(5, 16):
        (folder / f"{number}.safetensors").hardlink_to(folder / f"{number % 5}.safetensors")
    yield folder
    for path in folder.rglob("*.*"):
        path.unlink()


def peaks_of(folder: Path, strategy: str, *counts: int) -> list[int]:
    """Peaks in bytes over what stood before, each of a process of its own; the processes run side by side."""
    argvs = [[sys.executable, "-c", PROGRAM, str(folder), strategy, str(count)] for count in counts]
    processes = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for argv in argvs]
    return [json.loads(process.communicate(timeout=120)[0]) for process in processes]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RssAnon is Linux's")
@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "trimmed-mean", "krum", "norm-clip"])
def test_memory_is_a_tensor_or_two_whatever_the_number_of_updates(folder, strategy):
    few, many = peaks_of(folder, strategy, 5, 16)
    assert abs(many - few) < 30 * MB
    assert max(few, many) < MODEL + LARGEST
    assert max(few, many) < 3 * LARGEST + 20 * MB
