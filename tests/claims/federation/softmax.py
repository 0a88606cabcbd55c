"""Softmax regression in double precision over rows in a file, in their order, and no more."""

import numpy as np
import pytorch_lightning as pl
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class Regression(pl.LightningModule):
    def __init__(self, features, classes, lr):
        super().__init__()
        self.lr = lr
        self.net = torch.nn.Linear(features, classes, dtype=torch.float64)

    def training_step(self, batch, _index):
        x, y = batch
        return functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


class Rows(pl.LightningDataModule):
    def __init__(self, file, batch):
        super().__init__()
        self.batch = batch
        with np.load(file) as held:
            self.rows = TensorDataset(torch.from_numpy(held["x"]), torch.from_numpy(held["y"]))

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=self.batch)
