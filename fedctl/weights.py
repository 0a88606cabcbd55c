"""Weights as files: read lazily, checked strictly, written whole or not at all.

Owns `Weights` (a mapping of tensors over one safetensors file), `Lazy` (a mapping of tensors still to be computed),
`split` (an update's weights and the controls beside them), `save`, `digest`, and the reading and writing of Lightning
checkpoints. One tensor at a time is in memory, whatever the size of the file. Knows nothing of nodes and rounds, and
unpickles no code: a safetensors header is judged by `header`, a checkpoint is read by torch's restricted reader. The
nodes run this module too, under Python 3.10 or newer.
"""

import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fedctl.errors import ModelError
from fedctl.header import Header, TensorSpec, check_tensor, read_header, write_header
from fedctl.records import Blob

CONTROL = "control/"
"""What the name of a tensor begins with that a local rule sent beside the weights; the name it belongs to follows."""


class Weights(Mapping[str, Tensor]):
    """The tensors of one safetensors file, in the file's order, each mapped into memory when it is asked for.

    A tensor shares its memory with the file's cached pages; writing to one changes a private copy and never the file.
    `spec` and `metadata` come from the header alone. No file stays open, so that thousands of updates may be in use.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path = path
        self.spec = header.spec
        self.metadata = header.metadata
        self._starts = header.starts

    @classmethod
    def open(cls, path: Path, max_size: int | None = None, what: str | None = None) -> "Weights":
        """The weights in the file at `path`, of at most `max_size` bytes; raises ModelError for an unsound file.

        `what` names the file in the message, else its path does.
        """
        return cls(path, read_header(path, max_size, what))

    def __getitem__(self, name: str) -> Tensor:
        spec, start = self.spec[name], self._starts[name]
        dtype: torch.dtype = getattr(torch, spec.dtype)
        if spec.count == 0:
            return torch.empty(spec.shape, dtype=dtype)
        storage: Any = self._storage[start : start + spec.size]
        data = torch.empty(0, dtype=torch.uint8).set_(storage)
        if data.data_ptr() % spec.item_size:
            data = data.clone()
        return data.view(dtype).view(spec.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.spec)

    def __len__(self) -> int:
        return len(self.spec)

    @cached_property
    def _storage(self) -> Any:
        """The whole file; slices of a storage are storages of their own, so `torch.save` writes each tensor alone."""
        return torch.UntypedStorage.from_file(str(self.path), shared=False, nbytes=self.path.stat().st_size)


class Lazy(Mapping[str, Tensor]):
    """Tensors computed each time they are asked for; `spec` says beforehand what they will be."""

    def __init__(self, spec: Mapping[str, TensorSpec], compute: Callable[[str], Tensor]) -> None:
        self.spec = spec
        self._compute = compute

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.spec:
            raise KeyError(name)
        return self._compute(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.spec)

    def __len__(self) -> int:
        return len(self.spec)


def part(weights: Mapping[str, Tensor], names: Iterable[str]) -> Lazy:
    """Of these weights the tensors of these names."""
    spec = spec_of(weights)
    return Lazy({name: spec[name] for name in names}, weights.__getitem__)


def joined(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Lazy:
    """The tensors of both; of a name in both the first's."""
    return Lazy({**spec_of(second), **spec_of(first)}, lambda name: (first if name in first else second)[name])


def spec_of(tensors: Mapping[str, Tensor]) -> Mapping[str, TensorSpec]:
    """What each of the tensors is; raises ModelError for a tensor that no safetensors file can hold."""
    if isinstance(tensors, Weights | Lazy):
        return tensors.spec
    return {name: _spec_of(name, tensor) for name, tensor in tensors.items()}


def split(update: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """The weights of an update, and the controls beside them by the names of those weights; no tensor is copied.

    A tensor called as a control of no other tensor here is one of the weights.
    """
    spec = spec_of(update)
    names = [name for name in spec if CONTROL + name in spec]
    if not names:
        return update, {}
    beside = {CONTROL + name for name in names}
    weights = Lazy({name: found for name, found in spec.items() if name not in beside}, update.__getitem__)
    return weights, Lazy({name: spec[CONTROL + name] for name in names}, lambda name: update[CONTROL + name])


def controls_of(spec: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """All controls that there may be beside weights of this spec, by their names in an update."""
    return {CONTROL + name: one for name, one in spec.items() if one.is_inexact}


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Blob:
    """Write `tensors` as a safetensors file, one at a time, and put it at `path` whole.

    The same tensors give the same bytes. Tied tensors are written once for each of their names. Raises ModelError for a
    tensor that the format cannot hold, or that is not what a lazy mapping's `spec` said; then nothing is left behind.
    """
    spec = spec_of(tensors)
    order = sorted(spec, key=lambda name: (-spec[name].item_size, name))
    hasher = hashlib.sha256()
    with _replacing(path) as file:

        def put(part: bytes | memoryview) -> None:
            file.write(part)
            hasher.update(part)

        put(write_header(spec, order, metadata or {}))
        for name in order:
            put(_data(name, tensors[name], spec[name]))
        size = file.tell()
    return Blob(digest=hasher.hexdigest(), size=size)


def digest(path: Path) -> Blob:
    """The SHA-256 and the size of the file at `path`; raises OSError."""
    hasher, size, buffer = hashlib.sha256(), 0, memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
            size += count
    return Blob(digest=hasher.hexdigest(), size=size)


def read_file(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a user's file: .safetensors, or a Lightning checkpoint or state dict in .ckpt, .pt or .pth.

    Tensors stay on disk until they are used. Raises ModelError, naming the file, for anything else.
    """
    if path.suffix == ".safetensors":
        return Weights.open(path)
    content = _load(path)
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        raise ModelError(f"{path}: its `state_dict` is no dictionary of tensors")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ModelError(f"{path}: not a state dict: `{name}` is no tensor")
    return {name: value.detach() for name, value in state.items()}


def read_hyper_parameters(path: Path) -> dict[str, Any]:
    """The arguments of the module in a Lightning checkpoint, as `save_checkpoint` takes them; none elsewhere: {}."""
    if path.suffix == ".safetensors":
        return {}
    content = _load(path)
    values, argument = dict(content.get("hyper_parameters", {})), content.get("hparams_name", "kwargs")
    return values if argument == "kwargs" or not values else {argument: values}


def save_checkpoint(
    path: Path,
    weights: Mapping[str, Tensor],
    hyper_parameters: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a `.ckpt` that `load_from_checkpoint` of the user's LightningModule takes, whole or not at all.

    `hyper_parameters` are the arguments that the module is built with: plain values, so that no code is unpickled to
    read them; `metadata` stands beside them as `fedctl`. Lazy `weights` are computed first: one model is in memory.
    """
    checkpoint = {
        "pytorch-lightning_version": _lightning_version(),
        "epoch": 0,
        "global_step": 0,
        "state_dict": {name: _alone(tensor.detach()) for name, tensor in weights.items()},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": dict(hyper_parameters),
        **({"fedctl": dict(metadata)} if metadata else {}),
    }
    with _replacing(path) as file:
        torch.save(checkpoint, file)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file beside `path` that takes its place once it is whole and on disk."""
    fresh = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with fresh.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _spec_of(name: str, tensor: Tensor) -> TensorSpec:
    if not isinstance(tensor, Tensor):
        raise ModelError(f"`{name}` is a {type(tensor).__name__}, no tensor")
    dtype = str(tensor.dtype).removeprefix("torch.")
    check_tensor(name, dtype)
    if tensor.layout != torch.strided or tensor.is_meta:
        raise ModelError(f"tensor `{name}` is {'without values' if tensor.is_meta else 'sparse'} and cannot be saved")
    return TensorSpec(dtype, tuple(tensor.shape))


def _data(name: str, tensor: Tensor, expected: TensorSpec) -> memoryview:
    found = _spec_of(name, tensor)
    if found != expected:
        raise ModelError(f"tensor `{name}` came out as {found}, {expected} was announced")
    values = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return memoryview(values.view(torch.uint8).numpy())  # type: ignore[arg-type]


def _alone(tensor: Tensor) -> Tensor:
    """A tensor whose storage holds nothing else: `torch.save` writes whole storages."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _load(path: Path) -> dict[Any, Any]:
    if path.suffix not in {".ckpt", ".pt", ".pth"}:
        raise ModelError(f"{path}: not a file of weights", hint="give a .safetensors, .ckpt, .pt or .pth file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: not only tensors and plain values, and no code is unpickled",
            hint="save its state dict as .safetensors, or keep its hyper-parameters to plain numbers and texts",
        ) from error
    except Exception as error:  # a reader of foreign bytes raises whatever it stumbles on
        raise ModelError(f"{path}: not a file that torch.save wrote") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds a {type(content).__name__}, no state dict")
    return content


def _lightning_version() -> str:
    try:
        return version("pytorch-lightning")
    except PackageNotFoundError:
        return version("lightning")
