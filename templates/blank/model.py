"""The model: a LightningModule, as you would write it for one machine. Nothing in it knows of fedctl."""

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional


class Net(pl.LightningModule):
    """Your network. Here: one linear layer, features (N, 4) in, one number (N,) out."""

    # The arguments come from `task.model_args` in fed.yaml.
    def __init__(self, features: int = 4, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(features, 1)

    def forward(self, rows: Tensor) -> Tensor:
        return self.layer(rows).squeeze(dim=1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        rows, targets = batch
        loss = functional.mse_loss(self(rows), targets)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        # What is logged here is what fedctl shows. Log means over examples: they average well over nodes.
        rows, targets = batch
        self.log("val_loss", functional.mse_loss(self(rows), targets))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Made anew for every round, unless `task: {reset_optimizer: false}`.
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
