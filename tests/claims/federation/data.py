"""A site's share of MNIST, with all its images for training or with a quarter of them held back."""

from functools import cache

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

BATCH = 32


@cache
def images(file):
    with np.load(file) as held:
        return held["x"], held["y"]


@cache
def dealt(file, sites, alpha, seed, smallest):
    """The rows of each site, by shares of each class; unlike a Generator's, a RandomState's streams never change."""
    _, y = images(file)
    rng = np.random.RandomState(seed)
    while True:
        shares = [[] for _ in range(sites)]
        for digit in range(10):
            rows = np.flatnonzero(y == digit)
            rng.shuffle(rows)
            cuts = (np.cumsum(rng.dirichlet([alpha] * sites)) * len(rows)).astype(int)[:-1]
            for share, part in zip(shares, np.split(rows, cuts), strict=True):
                share.append(part)
        found = [np.concatenate(share) for share in shares]
        if min(map(len, found)) >= smallest:
            return found


class Whole(pl.LightningDataModule):
    """The last `hostile` of the `sites` are hostile: it is the model that acts so."""

    def __init__(self, file, site, sites, alpha, seed, smallest=10, hostile=0):
        super().__init__()
        rows = dealt(file, sites, alpha, seed, smallest)[site]
        self.order = np.random.RandomState(seed).permutation(rows)
        self.images = images(file)
        self.is_hostile = site >= sites - hostile

    def of(self, rows):
        return TensorDataset(*(torch.from_numpy(each[rows]) for each in self.images))

    def train_dataloader(self):
        return DataLoader(self.of(self.order), batch_size=BATCH, shuffle=True)


class Divided(Whole):
    """A quarter of the images of each digit is held back."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        of_each = [self.order[self.images[1][self.order] == digit] for digit in range(10)]
        self.order = np.concatenate([rows[: len(rows) * 3 // 4] for rows in of_each])
        self.held_back = np.concatenate([rows[len(rows) * 3 // 4 :] for rows in of_each])

    def val_dataloader(self):
        return DataLoader(self.of(self.held_back), batch_size=BATCH)
