"""FedAvg of every node in every round, without evaluation; says in `out` when rounds began and ended."""

import json
import time
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from mnist.work import network

app = ServerApp()


class Timed(FedAvg):
    def __init__(self, told, **options):
        super().__init__(**options)
        self.told = told

    def configure_train(self, server_round, *rest):
        self.told({"round": server_round, "opened": time.time()})
        return super().configure_train(server_round, *rest)

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        aggregated = super().aggregate_train(server_round, replies)
        failed = sum(reply.has_error() for reply in replies)
        self.told({"round": server_round, "closed": time.time(), "updates": len(replies) - failed})
        return aggregated


@app.main()
def main(grid, context):
    config = context.run_config
    out = Path(config["out"])

    def told(fact):
        with (out / "rounds.jsonl").open("a") as file:
            file.write(json.dumps(fact) + "\n")

    torch.manual_seed(0)
    nodes = config["nodes"]
    rule = Timed(told, fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    found = rule.start(grid=grid, initial_arrays=ArrayRecord(network().state_dict()), num_rounds=config["rounds"])
    np.savez(out / "model.npz", **{name: array.numpy() for name, array in found.arrays.items()})
    told({"saved": time.time()})
