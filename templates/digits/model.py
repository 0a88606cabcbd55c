"""A small convolutional network for 8x8 images: plain Lightning, nothing of fedctl."""

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional


class DigitsNet(pl.LightningModule):
    """Two convolutions and a linear layer: 6,090 weights. Images (N, 1, 8, 8) in, class scores (N, 10) out."""

    def __init__(self, lr: float = 0.05, momentum: float = 0.9, channels: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        # No batch normalisation: its running statistics describe one node's data and do not average well.
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * channels * 2 * 2, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        scores = self(images)
        self.log("val_loss", functional.cross_entropy(scores, labels))
        self.log("val_acc", (scores.argmax(dim=1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=self.hparams.momentum)
