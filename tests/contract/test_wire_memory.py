"""An update of 64 MB is written, kept and read in the memory of its stream and a few of its tensors.

Anonymous memory (RssAnon) is what counts: the pages of a mapped file can be given back at any time.
"""

import json
import subprocess
import sys

import pytest
import torch

from fedctl.weights import save

TENSORS, ELEMENTS = 16, 1 << 20
MODEL = 4 * TENSORS * ELEMENTS

PROGRAM = """
import json, sys, threading
from pathlib import Path

from fedctl.codecs.pipeline import Pipeline
from fedctl.codecs.wire import Outgoing, read
from fedctl.weights import Weights, save

folder = Path(sys.argv[1])
pipeline = Pipeline.of([{"name": name} for name in ("delta", "int8", "zstd")])

def anonymous():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024

def there_and_back(base, update):
    base, wire = Weights.open(base), folder / "wire"
    outgoing = Outgoing(pipeline=pipeline, tensors=Weights.open(update), base=base, residual=base, least=1e-9)
    yield outgoing.save(wire, base.spec)
    yield save(folder / "lost", outgoing.lost)
    yield save(folder / "came", read(wire, pipeline, base.spec, base, seed=0, least=1e-9))

list(there_and_back(folder / "small", folder / "small"))
peak = start = anonymous()
over = threading.Event()

def sample():
    global peak
    while not over.wait(0.001):
        peak = max(peak, anonymous())

thread = threading.Thread(target=sample)
thread.start()
wire, lost, came = there_and_back(folder / "base", folder / "update")
over.set()
thread.join()
print(json.dumps({"peak": peak - start, "wire": wire.size, "came": came.size}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RssAnon is Linux's")
def test_an_update_is_written_and_read_in_the_memory_of_a_few_tensors_and_its_stream(tmp_path):
    values = torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(0))
    for name, scale in (("base", 1.0), ("update", 1.1)):
        save(tmp_path / name, {f"layer{n}": values.roll(n).view(1024, -1) * scale for n in range(TENSORS)})
    save(tmp_path / "small", {"layer0": values[:10]})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, check=True, timeout=120
    )
    found = json.loads(done.stdout)
    assert found["came"] > MODEL > 3 * found["wire"]
    assert found["peak"] < found["wire"] + 5 * MODEL / TENSORS
