"""A small network for a watch's movements: plain Lightning, nothing of fedctl."""

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional


class MotionNet(pl.LightningModule):
    """45 features of two seconds (N, 45) in, scores of the exercises (N, 7) out: 3,399 weights.

    `body` and `head` are names of their own, so that `share` in fed.yaml can keep one of them at home; `norm=True` puts
    a batch normalisation in front, which can learn what is normal for one person.
    """

    def __init__(
        self, lr: float = 0.05, momentum: float = 0.9, hidden: int = 64, *, norm: bool = False, exercises: int = 7
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.norm = nn.BatchNorm1d(45) if norm else nn.Identity()
        self.body = nn.Sequential(nn.Linear(45, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, exercises)

    def forward(self, windows: Tensor) -> Tensor:
        return self.head(self.body(self.norm(windows)))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        windows, exercises = batch
        loss = functional.cross_entropy(self(windows), exercises)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        windows, exercises = batch
        scores = self(windows)
        self.log("val_loss", functional.cross_entropy(scores, exercises))
        self.log("val_acc", (scores.argmax(dim=1) == exercises).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=self.hparams.momentum)
