"""scikit-learn's handwritten digits, dealt unevenly to sites: each site sees mostly a few of the ten digits."""

from functools import lru_cache

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from fedctl.partition import dirichlet

try:
    from sklearn.datasets import load_digits
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the digits come with scikit-learn: pip install -r requirements.txt") from error


class DigitsData(pl.LightningDataModule):
    """One site's images, a fifth of them kept for validation; `site=None` is all sites together.

    The arguments come from fed.yaml: `task.data_args`, and each node's own `data`.
    """

    def __init__(
        self, site: int | None = None, *, sites: int = 5, alpha: float = 0.3, seed: int = 7, batch_size: int = 32
    ) -> None:
        super().__init__()
        if site is not None and not 0 <= site < sites:
            raise ValueError(f"site must be from 0 to {sites - 1}, not {site}")
        self.site, self.sites, self.alpha, self.seed, self.batch_size = site, sites, alpha, seed, batch_size

    def setup(self, stage: str | None = None) -> None:
        images, labels = digits()
        splits = site_splits(self.sites, self.alpha, self.seed)
        chosen = splits if self.site is None else splits[self.site : self.site + 1]
        train, validation = (torch.from_numpy(np.concatenate(rows)) for rows in zip(*chosen, strict=True))
        self.train_set = TensorDataset(images[train], labels[train])
        self.val_set = TensorDataset(images[validation], labels[validation])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, batch_size=512)


# A node's process stays for all rounds: what is cached here is read once, not once a round.


@lru_cache(maxsize=1)
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """All 1,797 images, (1797, 1, 8, 8) from 0 to 1, and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    return images, torch.tensor(labels, dtype=torch.int64)


@lru_cache(maxsize=8)
def site_splits(sites: int, alpha: float, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The rows that each site trains on and validates on."""
    labels = digits()[1].numpy()
    shares = dirichlet(labels, sites=sites, alpha=alpha, seed=seed)
    return [every_fifth_out(rows, labels, seed=[seed, site]) for site, rows in enumerate(shares)]


def every_fifth_out(rows: np.ndarray, labels: np.ndarray, *, seed: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle, sort by label, take every fifth row out: both parts then have the same mix of labels."""
    shuffled = np.random.default_rng(seed).permutation(rows)
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    held_out = np.arange(len(rows)) % 5 == 2
    return by_label[~held_out], by_label[held_out]
