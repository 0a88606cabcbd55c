"""Logistic regression for heart disease: plain Lightning, nothing of fedctl."""

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional


class HeartNet(pl.LightningModule):
    """One linear layer: 15 features (N, 15) in, the log-odds that the patient is sick (N,) out."""

    def __init__(self, features: int = 15, lr: float = 0.01, momentum: float = 0.9) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(features, 1)

    def forward(self, patients: Tensor) -> Tensor:
        return self.layer(patients).squeeze(dim=1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        patients, sick = batch
        loss = functional.binary_cross_entropy_with_logits(self(patients), sick)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        # Accuracy and loss are means over patients, so the hospitals' numbers add up to everyone's. An AUC would not.
        patients, sick = batch
        log_odds = self(patients)
        self.log("val_loss", functional.binary_cross_entropy_with_logits(log_odds, sick))
        self.log("val_acc", ((log_odds > 0) == (sick > 0)).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=self.hparams.momentum)
