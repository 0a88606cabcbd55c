"""A small causal transformer over bytes, begun as GPT-2 is: two layers of width 64, 120,576 parameters."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional

WIDTH, LAYERS, HEADS, CONTEXT = 64, 2, 4, 64


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.into, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        rows, length, _ = x.shape
        q, k, v = self.into(self.before(x)).view(rows, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(rows, length, WIDTH))
        return x + self.narrow(functional.gelu(self.wide(self.between(x))))


class Bytes(pl.LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.lr = lr
        self.byte, self.place = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        for each in self.parameters():
            if each.dim() == 2:
                nn.init.normal_(each, std=0.02)
        for each in self.modules():
            if isinstance(each, nn.Linear):
                nn.init.zeros_(each.bias)

    def forward(self, x):
        found = self.norm(self.blocks(self.byte(x) + self.place.weight[: x.shape[1]]))
        return functional.linear(found, self.byte.weight)

    def loss(self, rows):
        """In nats a byte, of rows of CONTEXT + 1 bytes."""
        rows = rows.long()
        return functional.cross_entropy(self(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())

    def training_step(self, batch, _index):
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), self.lr)
