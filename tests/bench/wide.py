"""A model that is large and learns nothing, as a user's code has it: many square layers, and one batch of noise.

`python wide.py LAYERS SIDE` trains it by itself, as a node does and with nothing of fedctl: the peer of `large`.
"""

import logging
import sys
import warnings

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

BATCH = 8
FLAGS = {
    "accelerator": "cpu",
    "devices": "auto",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Wide(pl.LightningModule):
    """`layers` tensors of `side` times `side` values."""

    def __init__(self, layers: int, side: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(side, side, bias=False) for _ in range(layers))

    def loss(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x.square().mean()

    def training_step(self, batch: Tensor, _index: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Tensor, _index: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


class Noise(pl.LightningDataModule):
    """One batch for each of the two loaders."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.rows = torch.randn((BATCH, side), generator=torch.Generator().manual_seed(0))

    def train_dataloader(self) -> torch.utils.data.DataLoader[Tensor]:
        return torch.utils.data.DataLoader(self.rows, batch_size=BATCH)

    def val_dataloader(self) -> torch.utils.data.DataLoader[Tensor]:
        return torch.utils.data.DataLoader(self.rows, batch_size=BATCH)


def main(layers: int, side: int) -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    pl.Trainer(max_epochs=1, limit_val_batches=0, **FLAGS).fit(Wide(layers, side), datamodule=Noise(side))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
