"""The data: a LightningDataModule that reads what the node it runs on has. Nothing in it knows of fedctl."""

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


class Data(pl.LightningDataModule):
    """One node's rows, a fifth of them kept for validation."""

    # The arguments come from `task.data_args` in fed.yaml and from the node's own `data` there.
    def __init__(self, site: int = 0, *, batch_size: int = 32) -> None:
        super().__init__()
        self.site, self.batch_size = site, batch_size

    def setup(self, stage: str | None = None) -> None:
        features, targets = read_rows(self.site)
        held_out = torch.arange(len(targets)) % 5 == 0
        self.train_set = TensorDataset(features[~held_out], targets[~held_out])
        self.val_set = TensorDataset(features[held_out], targets[held_out])

    def train_dataloader(self) -> DataLoader:
        # No generator of one's own: fedctl seeds torch for every task, so a run can be repeated to the bit.
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, batch_size=512)


def read_rows(site: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This node's features, (rows, 4), and targets, (rows,).

    The rows are made up, so that the folder runs as it is. Put the reading of your files here, for example

        table = pandas.read_csv(f"{root}/measurements.csv")

    with `root` as an argument of `Data` in place of `site`, and `data: {root: /srv/...}` at each node in fed.yaml.
    """
    rng = np.random.default_rng(site)
    features = rng.normal(loc=site, size=(200, 4))  # every site looks at another corner of the same law
    targets = features @ [2.0, -1.0, 0.5, 0.0] + 1 + rng.normal(scale=0.1, size=200)
    return torch.tensor(features, dtype=torch.float32), torch.tensor(targets, dtype=torch.float32)
