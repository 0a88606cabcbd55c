"""Ten people's smart watches, one person at a time: plain Lightning, nothing of fedctl.

Everyone did seven exercises for the shoulder, once with the watch on each arm: 14 recordings of 20 to 50 seconds. A
person trains on one arm's only. Validation asks two things at once: does the model know the exercise when the same arm
does it again, and when the other arm does, of which this person has shown nothing?
"""

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

PEOPLE = 10
WINDOW, STEP = 100, 50  # samples at 50 Hz: two seconds, one second apart

# What counts as much: 0.5 g for the three accelerations, 2 rad/s for the three turning rates. Round numbers of how arms
# move, not statistics of these people, so each watch prepares its windows alone and the same way.
SCALES = (0.5, 0.5, 0.5, 2, 2, 2)
CHANGE = 10  # from one sample to the next little changes; in a fifth of a second about as much as above

Windows = tuple[np.ndarray, np.ndarray]
"""Features (N, 45) and exercises (N,)."""


class WatchData(pl.LightningDataModule):
    """One person's windows, for training and for validation; `person=None` is all ten together.

    People are 1 to 10. Odd ones train on one arm and even ones on the other; `swap_arms` turns that round. The
    arguments come from fed.yaml: `task.data_args`, and each node's own `data`.
    """

    def __init__(self, person: int | None = None, *, swap_arms: bool = False, batch_size: int = 32) -> None:
        super().__init__()
        if person is not None and not 1 <= person <= PEOPLE:
            raise ValueError(f"person must be from 1 to {PEOPLE}, not {person}")
        self.people = range(1, PEOPLE + 1) if person is None else [person]
        self.swap_arms, self.batch_size = swap_arms, batch_size

    def setup(self, stage: str | None = None) -> None:
        chosen = [split(person, swap_arms=self.swap_arms) for person in self.people]
        train, validation = zip(*chosen, strict=True)
        self.train_set, self.val_set = as_tensors(train), as_tensors(validation)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, batch_size=512)


def as_tensors(parts: tuple[Windows, ...]) -> TensorDataset:
    features, exercises = (torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True))
    return TensorDataset(features, exercises)


# A node's process stays for all rounds: what is cached here is made once, not once a round.


@lru_cache(maxsize=PEOPLE)
def split(person: int, *, swap_arms: bool) -> tuple[Windows, Windows]:
    """A person's windows for training and for validation.

    Training has the first two thirds of each recording of one arm, validation the last third of every recording. They
    are cut apart before windows are made: windows overlap, so dealing windows would show training half of what
    validation asks.
    """
    train, validation = [], []
    for arm, exercise, samples in read_recordings()[person]:
        cut = len(samples) * 2 // 3
        if arm == (person + swap_arms) % 2:
            train.append(windows(samples[:cut], exercise))
        validation.append(windows(samples[cut:], exercise))
    return joined(train), joined(validation)


def joined(parts: list[Windows]) -> Windows:
    features, exercises = zip(*parts, strict=True)
    return np.concatenate(features), np.concatenate(exercises)


def windows(samples: np.ndarray, exercise: int) -> Windows:
    """The windows of samples (T, 6): of each channel the mean, deviation, least, most and change; their covariances."""
    cut = np.lib.stride_tricks.sliding_window_view(samples / SCALES, WINDOW, axis=0)[::STEP]  # (N, 6, 100)
    mean = cut.mean(axis=2)
    moved = cut - mean[:, :, None]
    covariances = np.einsum("nit,njt->nij", moved, moved) / WINDOW
    change = CHANGE * np.abs(np.diff(cut, axis=2)).mean(axis=2)
    pairs = np.triu_indices(6, k=1)
    features = [mean, cut.std(axis=2), cut.min(axis=2), cut.max(axis=2), change, covariances[:, pairs[0], pairs[1]]]
    return np.concatenate(features, axis=1).astype(np.float32), np.full(len(cut), exercise)


@lru_cache(maxsize=1)
def read_recordings() -> dict[int, list[tuple[int, int, np.ndarray]]]:
    """Each person's recordings: the arm (1 is the right), the exercise (0 to 6), the samples (T, 6)."""
    # Recordings differ in length, so the package keeps them as a pickle, which can run code: hence the exact version.
    watch = np.load(find_recordings(), allow_pickle=True).item()
    recordings: dict[int, list[tuple[int, int, np.ndarray]]] = {person: [] for person in range(1, PEOPLE + 1)}
    for person, arm, exercise, samples in zip(watch["subject"], watch["side"], watch["y"], watch["X"], strict=True):
        recordings[int(person)].append((int(arm), int(exercise), samples))
    return recordings


def find_recordings() -> Path:
    """The file inside the package seglearn, which need not be imported for it."""
    package = importlib.util.find_spec("seglearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the recordings come with the package seglearn: pip install -r requirements.txt")
    return Path(package.origin).parent / "data" / "watch_dataset.npy"
