"""Flower's strategies on files of updates, read into memory first: prints the seconds of the best of three.

`python flower_aggregate.py FOLDER STRATEGY COUNT HOSTILE`, where flwr is installed and fedctl is not.
"""

import json
import logging
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy

TRIES = 3


def rule(name, count, hostile):
    match name:
        case "fedavg":
            return strategy.FedAvg()
        case "median":
            return strategy.FedMedian()
        case "trimmed-mean":
            return strategy.FedTrimmedAvg(beta=(hostile + 0.5) / count)
        case "krum":
            return strategy.Krum(num_malicious_nodes=hostile)
        case "bulyan":
            return strategy.Bulyan(num_malicious_nodes=hostile)
        case _:
            raise ValueError(f"{name} is not compared")


def read(path):
    """The float32 tensors of a safetensors file."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:start])
    return {
        name: np.frombuffer(content, np.float32, offset=start + entry["data_offsets"][0], count=entry["shape"][0])
        for name, entry in entries.items()
        if name != "__metadata__"
    }


def reply(arrays, examples):
    metrics = MetricRecord({"num-examples": examples})
    record = ArrayRecord({name: Array(values) for name, values in arrays.items()})
    return SimpleNamespace(has_error=lambda: False, content=RecordDict({"arrays": record, "metrics": metrics}))


def main(folder, name, count, hostile):
    logging.disable()
    updates = [read(Path(folder) / f"{number}.safetensors") for number in range(int(count))]
    best = float("inf")
    for _ in range(TRIES):
        replies = [reply(arrays, 1.0 + number) for number, arrays in enumerate(updates)]
        start = time.perf_counter()
        rule(name, int(count), int(hostile)).aggregate_train(1, replies)
        best = min(best, time.perf_counter() - start)
    print(best)


if __name__ == "__main__":
    main(*sys.argv[1:])
