"""`cpu`: what a whole run costs in processor time, beside a plain loop in one process that does the same work."""

import json
import sys

from fedctl.events import ModelEvaluated, UpdateReceived
from tests.bench.digits import Workshop, journal
from tests.bench.measure import Row, cpu_seconds, median, ratio, shown

NODES = 4
ROUNDS = 10
TIMES = 2


def cpu(workshop: Workshop) -> list[Row]:
    ours, theirs, work, apart = [], [], {}, []
    for _ in range(TIMES):
        spent, folder = workshop.cpu_of_a_run(NODES, ROUNDS)
        ours.append(spent)
        events = journal(folder)
        work = {
            "fits": sum(isinstance(event, UpdateReceived) for event in events),
            "validations": sum(isinstance(event, ModelEvaluated) for event in events),
        }
        plain = (sys.executable, "-m", "tests.bench.plain", str(folder), str(NODES), str(ROUNDS))
        theirs.append(cpu_seconds(plain))
        apart.append(json.loads((folder / "plain.json").read_text())["apart"])
    imports = cpu_seconds((sys.executable, "-c", "import torch, pytorch_lightning"))
    return [
        Row(
            name=f"cpu: {NODES} nodes, {ROUNDS} rounds",
            value=ratio(ours, theirs),
            unit="x",
            at_most=2,
            beside=f"{shown(median(ours), 's')} beside {shown(median(theirs), 's')} of a plain loop; "
            f"imports are {shown(imports, 's')} of either",
            details={
                "cpu_seconds": ours,
                "plain_cpu_seconds": theirs,
                "import_cpu_seconds": imports,
                "work": work,
                "models_apart": apart,
            },
        )
    ]
