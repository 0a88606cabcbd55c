"""Two models of MNIST, and what a hostile node does to its own."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional


class Softmax(pl.LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.lr = lr
        self.net = self.layers()

    def layers(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    def training_step(self, batch, _index):
        x, y = batch
        return functional.cross_entropy(self.net(x), y)

    def on_train_end(self):
        if self.trainer.datamodule.is_hostile:
            for each in self.parameters():
                each.data += torch.randn_like(each)

    def validation_step(self, batch, _index):
        x, y = batch
        self.log("val_acc", (self.net(x).argmax(dim=1) == y).float().mean(), batch_size=len(y))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


class Convolutional(Softmax):
    """11,274 parameters."""

    def layers(self):
        return nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(8, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(784, 10),
        )


class Standardized(Convolutional):
    """The same over images that are standardized by MNIST's mean and deviation."""

    def layers(self):
        return nn.Sequential(Standardize(), *super().layers())


class Standardize(nn.Module):
    def forward(self, x):
        return (x - 0.1307) / 0.3081
