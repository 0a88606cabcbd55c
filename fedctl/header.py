"""The header of a safetensors file, read strictly and written: which tensors it holds, of what kind, and where.

Owns `TensorSpec` and `Header`. Standard library only, so that a file can be judged without torch; the nodes run this
module too, under Python 3.10 or newer. A header may come from anybody: its length, its names, its shapes and every
offset are checked before a byte is read on its word.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fedctl import strictjson
from fedctl.errors import ModelError

_CODES: Mapping[str, tuple[str, int]] = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint64": ("U64", 8),
    "uint32": ("U32", 4),
    "uint16": ("U16", 2),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
    "complex64": ("C64", 8),
}
_NAMES = {code: name for name, (code, _) in _CODES.items()}
_LONGEST_HEADER = 1 << 24  # bytes: some 150 000 tensors, and bounded memory for the parsing of hostile JSON
_LONGEST_NAME = 1_000
_LARGEST = 1 << 48  # elements of a tensor: far from where arithmetic on sizes overflows
_MOST_DIMENSIONS = 64  # torch's own bound


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor is without its values: torch's name of its dtype (`float32`) and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Any) -> "TensorSpec":
        """What a tensor of torch's is."""
        return cls(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"

    @property
    def is_floating(self) -> bool:
        """Whether its elements are real numbers of limited precision."""
        return self.dtype.startswith(("float", "bfloat"))

    @property
    def is_inexact(self) -> bool:
        """Whether they are such, or complex: then means and changes of them have a meaning."""
        return self.is_floating or self.dtype.startswith("complex")

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def item_size(self) -> int:
        """Bytes an element."""
        return _CODES[self.dtype][1]

    @property
    def size(self) -> int:
        """Bytes of all elements."""
        return self.count * self.item_size


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of a file in the file's order, the byte of the file where each starts, and its free texts."""

    spec: Mapping[str, TensorSpec]
    starts: Mapping[str, int]
    metadata: Mapping[str, str]


def read_header(path: Path, max_size: int | None = None, what: str | None = None) -> Header:
    """The header of the file at `path`; `max_size` bounds the whole file, in bytes.

    Raises ModelError for whatever is not a sound safetensors file; `what` names it there, else its path does.
    """
    name = what or str(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if max_size is not None and size > max_size:
                raise ModelError(f"{name}: has {size} bytes, at most {max_size} are allowed")
            return _parse(_read_json(file, size), size)
    except OSError as error:
        raise ModelError(f"{name}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{name}: not a sound safetensors file: {error}") from error


def write_header(spec: Mapping[str, TensorSpec], order: Iterable[str], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a file whose tensors follow in `order`; padded so that the tensors start at a multiple of 8.

    Raises ModelError where a tensor, by its name or dtype, or their number has no place in the format.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **dict(sorted(metadata.items()))}}
    end = 0
    for name in order:
        check_tensor(name, spec[name].dtype)
        start, end = end, end + spec[name].size
        code, _ = _CODES[spec[name].dtype]
        entries[name] = {"dtype": code, "shape": spec[name].shape, "data_offsets": [start, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _LONGEST_HEADER:
        raise ModelError(f"{len(spec)} tensors are more than one file can describe")
    return len(text).to_bytes(8, "little") + text


def check_tensor(name: str, dtype: str) -> None:
    """Refuse, with a ModelError, a name or a dtype that has no place in a file."""
    if not _is_name(name):
        raise ModelError(f"{str(name)[:50]!r} cannot name a tensor")
    if dtype not in _CODES:
        raise ModelError(f"tensor `{name}` has the dtype {dtype}, which a safetensors file cannot hold")


def _read_json(file: BinaryIO, size: int) -> bytes:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) == 8 and 2 <= length <= min(_LONGEST_HEADER, size - 8):
        return file.read(length)
    if not start:
        raise ValueError("it is empty")
    if start.startswith(b"PK"):
        raise ValueError("it is a zip archive, as torch.save writes")
    if start.startswith(b"\x80"):
        raise ValueError("it is a pickle")
    raise ValueError(f"it claims a header of {length} bytes in a file of {size}")


def _parse(text: bytes, size: int) -> Header:
    entries = strictjson.loads(text.decode())
    if not isinstance(entries, dict):
        raise ValueError("its header is no JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata is more than texts")
    spec: dict[str, TensorSpec] = {}
    starts: dict[str, int] = {}
    end = first = 8 + len(text)
    tensors = [(name, *_entry(name, entry)) for name, entry in entries.items()]
    for name, tensor, start, stop in sorted(tensors, key=lambda item: item[2:]):
        if (first + start, first + stop) != (end, end + tensor.size):
            raise ValueError(
                f"tensor `{name}` ({tensor}) does not fill its bytes {start} to {stop}, right after others"
            )
        spec[name], starts[name], end = tensor, end, end + tensor.size
    if end != size:
        raise ValueError(f"it has {size} bytes, its header describes {end}")
    return Header(spec, starts, metadata)


def _entry(name: str, entry: Any) -> tuple[TensorSpec, int, int]:
    if not _is_name(name):
        raise ValueError(f"{name[:50]!r} cannot name a tensor")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor `{name}` is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _NAMES:
        raise ValueError(f"tensor `{name}` has an unknown dtype: {str(dtype)[:50]!r}")
    if not _are_counts(shape) or len(shape) > _MOST_DIMENSIONS or math.prod(max(1, n) for n in shape) > _LARGEST:
        raise ValueError(f"tensor `{name}` has no sound shape")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor `{name}` has no sound offsets")
    return TensorSpec(_NAMES[dtype], tuple(shape)), offsets[0], offsets[1]


def _is_name(name: Any) -> bool:
    """Names are shown on terminals, so they hold no control characters."""
    return isinstance(name, str) and 0 < len(name) <= _LONGEST_NAME and name.isprintable() and name != "__metadata__"


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= _LARGEST for value in values)
