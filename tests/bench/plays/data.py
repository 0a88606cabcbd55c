"""A node's plays as one text, cut into rows of 65 bytes of which each begins with the last byte of the one before."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

CONTEXT = 64


class Plays(pl.LightningDataModule):
    def __init__(self, file, batch_size):
        super().__init__()
        self.batch_size = batch_size
        self.rows = rows(Path(file).read_bytes())

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=self.batch_size, shuffle=True, drop_last=True)


def rows(text):
    """Of shape (rows, 65)."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).unfold(0, CONTEXT + 1, CONTEXT)
