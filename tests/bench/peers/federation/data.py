"""A site's images. Nodes validate nothing: both sides' last models are tested outside."""

from functools import cache

import pytorch_lightning as pl
from work import batches

loader = cache(batches)
"""A node's process stays for all rounds."""


class Images(pl.LightningDataModule):
    def __init__(self, file, site):
        super().__init__()
        self.file, self.site = file, site

    def train_dataloader(self):
        return loader(self.file, self.site)
