"""The network under Lightning."""

import pytorch_lightning as pl
from torch.nn import functional
from work import LR, network, optimizer


class Mnist(pl.LightningModule):
    def __init__(self, lr=LR):
        super().__init__()
        self.lr = lr
        self.net = network()

    def training_step(self, batch, _index):
        images, labels = batch
        return functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self):
        return optimizer(self, self.lr)
