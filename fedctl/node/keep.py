"""What a node keeps of one training for its next: files in that training's folder, which never travel.

The coordinator names the training to go on with, so it does not matter how often one was begun, or whether an update
came too late. Any of it may be gone: then the node begins anew, and says so.
"""

import contextlib
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedctl.codecs.pipeline import Pipeline
from fedctl.errors import ConfigError, ModelError
from fedctl.node import rules
from fedctl.node.agent import key_of, remove, write_whole
from fedctl.records import Task, TaskKey
from fedctl.weights import Lazy, Weights, part, spec_of
from fedctl.weights import save as save_weights

STATE, OPTIMIZERS = "state.safetensors", "optimizers.pt"
_PRIVATE, _WAITING, _RULE, _RESIDUAL = "private/", "waiting/", "rule/", "residual/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a training left, each by the model's names of tensors.

    Those that no node shares, as far as they were trained here; those whose turn to travel it was not; what the local
    rule wants again; what the codecs did not bring over; and the states of what Lightning steps (None: they are to
    begin anew).
    """

    private: Mapping[str, Tensor] = field(default_factory=dict)
    waiting: Mapping[str, Tensor] = field(default_factory=dict)
    rule: Mapping[str, Tensor] = field(default_factory=dict)
    residual: Mapping[str, Tensor] = field(default_factory=dict)
    optimizers: Mapping[str, Any] | None = None


def is_asked(task: Task) -> bool:
    """Whether a training of this task's kind leaves anything for the next."""
    keeps = bool(task.share) or not task.reset_optimizer or bool(task.local and rules.build(task.local).keeps)
    return keeps or Pipeline.of(task.codec.get("up", ())).is_lossy


def save(folder: Path, kept: Kept) -> None:
    """Leave it in the folder of its training, whole and for good; ConfigError for states that nobody could read."""
    if kept.optimizers is not None:
        write_whole(folder / OPTIMIZERS, _packed(kept.optimizers))
    parts = {_PRIVATE: kept.private, _WAITING: kept.waiting, _RULE: kept.rule, _RESIDUAL: kept.residual}
    spec = {prefix + name: one for prefix, many in parts.items() for name, one in spec_of(many).items()}

    def compute(named: str) -> Tensor:
        prefix, slash, name = named.partition("/")
        return parts[prefix + slash][name]

    save_weights(folder / STATE, Lazy(spec, compute))


def load(run: Path, task: Task) -> Kept | None:
    """What the training that the task names has left in the run's folder; None where that is gone or damaged.

    Where the optimizers' states alone are, they are to begin anew.
    """
    if task.kept is None:
        return None
    folder = run / task.kept.folder
    try:
        state = Weights.open(folder / STATE)
    except ModelError:
        return None
    optimizers = None
    if not task.reset_optimizer:
        with contextlib.suppress(Exception):  # a reader of damaged bytes raises whatever it stumbles on
            optimizers = torch.load(folder / OPTIMIZERS, map_location="cpu", weights_only=True)
    return Kept(
        private=_named(state, _PRIVATE),
        waiting=_named(state, _WAITING),
        rule=_named(state, _RULE),
        residual=_named(state, _RESIDUAL),
        optimizers=optimizers,
    )


def is_missed(task: Task, kept: Kept | None) -> bool:
    """Whether a training was to go on with something that is not there any more."""
    if task.kept is None:
        return False
    return kept is None or (not task.reset_optimizer and kept.optimizers is None)


def sweep(run: Path, task: Task) -> None:
    """Remove what other trainings of the task's node have left: only what the newest one goes on with is wanted."""
    if not is_asked(task):
        return
    spared = {key for key in (task.key, task.kept) if key}
    for folder in run.glob(f"r*-{task.key.node}-a*"):
        other = TaskKey.parse(key_of(folder.name))
        if other.node == task.key.node and other not in spared:
            for path in (*folder.glob(f"{STATE}*"), *folder.glob(f"{OPTIMIZERS}*")):
                remove(path)


def _packed(states: Mapping[str, Any]) -> bytes:
    """What torch's restricted reader takes, which nothing that runs code gets past."""
    buffer = io.BytesIO()
    torch.save(dict(states), buffer)
    buffer.seek(0)
    try:
        torch.load(buffer, weights_only=True)
    except pickle.UnpicklingError as error:
        why = next((line for line in str(error).splitlines() if "GLOBAL" in line), "it holds more than plain values")
        raise ConfigError(
            f"task.reset_optimizer: false cannot keep the state of an optimizer or a scheduler: {why.strip()}",
            hint="give them plain numbers, such as float(lr)",
        ) from error
    return buffer.getvalue()


def _named(state: Weights, prefix: str) -> Mapping[str, Tensor]:
    names = {name.removeprefix(prefix): name for name in state if name.startswith(prefix)}
    found = part(state, names.values())
    return {name: found[whole] for name, whole in names.items()}
