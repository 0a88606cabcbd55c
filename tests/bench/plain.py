"""The peer of `cpu`: federated averaging as a loop in one process, `python -m tests.bench.plain FOLDER NODES ROUNDS`.

The same classes, Trainer arguments, seeds, fits and validations as the run `bench` in that folder, and nothing else of
it: no journal, files, processes or checks. Writes how far its last model is from the run's to FOLDER/plain.json.
"""

import hashlib
import importlib
import json
import logging
import sys
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.bench.digits import DATA_ARGS, MODEL_ARGS, SEED, THREADS, TRAINER, node_name

Model = dict[str, Tensor]
FLAGS = {
    "accelerator": "cpu",
    "devices": "auto",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def main(folder: Path, nodes: int, rounds: int) -> None:
    sys.path.insert(0, str(folder))
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(THREADS)
    model = first_model()
    validated(model, nodes, 0)
    for number in range(1, rounds + 1):
        updates = [trained(model, site, number) for site in range(nodes)]
        model = averaged(updates)
        validated(model, nodes, number)
    theirs = load_file(folder / "runs" / "bench" / "model.safetensors")
    apart = max(float((model[name] - tensor).abs().max()) for name, tensor in theirs.items())
    (folder / "plain.json").write_text(json.dumps({"apart": apart}))


def first_model() -> Model:
    pl.seed_everything(_seed(str(SEED)), verbose=False)
    return _net().state_dict()


def trained(start: Model, site: int, number: int) -> tuple[Model, int]:
    """One site's weights after its epochs, and how many examples they come from."""
    seed = _seed(f"{SEED}/{number}/{node_name(f'{site:02d}')}")
    pl.seed_everything(seed, verbose=False)
    net, data = _net(), _data(site)
    net.load_state_dict(start)
    pl.seed_everything(seed, verbose=False)
    trainer = pl.Trainer(**TRAINER, **FLAGS, limit_val_batches=0)
    trainer.fit(net, datamodule=data)
    return net.state_dict(), len(data.train_set)


def validated(model: Model, nodes: int, number: int) -> None:
    for site in range(nodes):
        pl.seed_everything(_seed(f"{SEED}/{number}/{node_name(f'{site:02d}')}"), verbose=False)
        net = _net()
        net.load_state_dict(model)
        pl.Trainer(**TRAINER, **FLAGS).validate(net, datamodule=_data(site), verbose=False)


def averaged(updates: list[tuple[Model, int]]) -> Model:
    total = sum(examples for _, examples in updates)
    return {
        name: sum(update[name].double() * (examples / total) for update, examples in updates).to(tensor.dtype)
        for name, tensor in updates[0][0].items()
    }


def _net() -> pl.LightningModule:
    return importlib.import_module("model").DigitsNet(**MODEL_ARGS)


def _data(site: int) -> pl.LightningDataModule:
    return importlib.import_module("data").DigitsData(site=site, **DATA_ARGS)


def _seed(text: str) -> int:
    """As a task's seed is made."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
