"""The parts of a model on a node: what came of the federation, what the node keeps, and the rest as it was at first."""

import fcntl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedctl.codecs.pipeline import Pipeline, seed_of_model
from fedctl.codecs.wire import BESIDE, read
from fedctl.errors import ConfigError, ModelError
from fedctl.node.agent import Blobs
from fedctl.node.keep import Kept
from fedctl.node.trainers.code import flavour_of, load, seed_everything
from fedctl.records import DIFFERENCE, NEWEST, REST, Blob, Task
from fedctl.share import Share
from fedctl.weights import Weights, save, spec_of


def share_of(task: Task) -> Share:
    """Which tensors of the task's model travel."""
    return Share.from_json(task.share) if task.share else Share()


def is_rest_here(task: Task, blobs: Blobs) -> bool:
    """Whether the rest of the task's model is on this machine: as it came, or built now of the user's code.

    Where it cannot be built to the bit, that is noted, so that it is sent. Raises whatever the user's code raises.
    """

    def build(path: Path) -> Blob:
        first, share = initial(task).state_dict(), share_of(task)
        return save(path, {name: tensor for name, tensor in first.items() if not share.covers(name)})

    blob = task.models.get(REST)
    return blob is None or _is_here(task, blobs, blob, build)


def is_model_here(task: Task, blobs: Blobs) -> bool:
    """Whether the newest model is on this machine: as it came, or made now of its difference to the one before.

    Where it cannot be made to the bit, that is noted, so that it is sent.
    """
    difference, previous = task.models[DIFFERENCE], task.previous

    def make(path: Path) -> Blob | None:
        if not (previous and blobs.verify(previous.digest) and blobs.verify(difference.digest)):
            return None
        before = Weights.open(blobs.path(previous.digest))
        pipeline, seed = Pipeline.of(task.codec.get("down", ())), seed_of_model(previous)
        return save(path, read(blobs.path(difference.digest), pipeline, before.spec, before, seed=seed, least=1.0))

    return _is_here(task, blobs, next(blob for label, blob in task.models.items() if label in NEWEST), make)


def _is_here(task: Task, blobs: Blobs, blob: Blob, make: Callable[[Path], Blob | None]) -> bool:
    """Whether a blob is on this machine, where one process at a time may `make` it, and the others find it."""
    path = blobs.path(blob.digest)
    made = path.with_suffix(f".{task.key.folder}")
    with path.with_suffix(".making").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if blobs.verify(blob.digest):
            return True
        try:
            if make(made) == blob:
                made.replace(path)
                return True
        except ModelError:  # other code, or another version of a library, than the coordinator's
            pass
        finally:
            made.unlink(missing_ok=True)
        blobs.want(blob.digest)
        return False


def initial(task: Task) -> Any:
    """The user's module as the seed builds it first."""
    kind = load(task.model)
    seed_everything(flavour_of(kind, "LightningModule", task.model), task.first_seed)
    return kind(**task.model_args)


def check_parts(model: Any, task: Task) -> None:
    """Raises ConfigError where one tensor has a shared name and another, or where fine-tuning makes another model."""
    share = share_of(task)
    if named := [name for name in model.state_dict() if BESIDE in name]:
        raise ConfigError(f"task.model: a tensor cannot be called `{named[0]}`: `{BESIDE}` divides names of files")
    parts = share.parts({name: spec.size for name, spec in spec_of(model.state_dict()).items() if share.covers(name)})
    owners: dict[Any, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first = owners.setdefault((tensor.data_ptr(), tensor.shape) if tensor.numel() else name, name)
        if share.covers(first) != share.covers(name):
            raise ConfigError(f"share: `{first}` and `{name}` are one tensor, and one of them alone is shared")
        if share.period(first) != share.period(name):
            raise ConfigError(f"share: `{first}` and `{name}` are one tensor, and `every` has them travel apart")
        if parts.get(first) != parts.get(name):
            raise ConfigError(f"strategy: `{first}` and `{name}` are one tensor, and `fragments` has them travel apart")
    if task.finetune:
        other = load(task.model)(**{**task.model_args, **task.finetune})
        if spec_of(other.state_dict()) != spec_of(model.state_dict()):
            raise ConfigError("finetune/model_args: they make a model of other tensors than task.model_args do")


def whole(task: Task, models: Mapping[str, Path], label: str, kept: Kept | None = None) -> dict[str, Tensor]:
    """All tensors of the model of that label, with what the node has kept in place of what they were at first."""
    rest = Weights.open(models[REST]) if REST in models else {}
    shared = Weights.open(models[label])
    return {**rest, **(kept.private if kept else {}), **shared, **(_still_waiting(task, kept, shared) if kept else {})}


def _still_waiting(task: Task, kept: Kept, model: Weights) -> dict[str, Tensor]:
    """Of what waits here for its turn, all that no round has shared since: what one has is newer in the model."""
    if not kept.waiting or task.kept is None:
        return {}
    sizes = {name: spec.size for name, spec in model.spec.items()}
    newest = task.key.round - 1 if task.key.kind == "train" else task.key.round
    past = range(task.kept.round + 1, newest + 1)
    newer = set[str]().union(*(share_of(task).due(sizes, round) for round in past))
    return {name: tensor for name, tensor in kept.waiting.items() if name not in newer}


def trained_here(state: Mapping[str, Tensor], models: Mapping[str, Path]) -> dict[str, Tensor]:
    """Of a model's tensors those that stay and are not as they were at first."""
    if REST not in models:
        return {}
    rest = Weights.open(models[REST])
    return {name: state[name] for name in rest if not torch.equal(state[name].detach().cpu(), rest[name])}
