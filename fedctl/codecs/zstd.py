"""The codec `zstd`: all parts of an update as one compressed stream, bytes of a kind side by side.

Collet and Kucherawy: Zstandard Compression and the application/zstd Media Type, RFC 8878. The stream holds the parts
one after the other and nothing else: both sides know what they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedctl.codecs import Step
from fedctl.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from fedctl.header import TensorSpec

_WIDEST_WINDOW = 8 << 20
"""Bytes of what came before that a stream may refer to: it bounds the memory of whoever reads one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Zstd:
    """Lossless. Of numbers of more than a byte all first bytes go first, then all second ones, and so on.

    `level` is zstd's own, from -7 (fastest) to 19.
    """

    level: int = 1

    step: ClassVar[Step] = "bytes"
    exact_everywhere: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not -7 <= self.level <= 19:
            raise ValueError(f"level should be from -7 to 19, not {self.level}")

    def pack(self, parts: Iterable[Tensor]) -> Tensor:
        """One row of bytes; a part is in memory at a time, and what is compressed."""
        import torch
        import zstandard

        compressor = zstandard.ZstdCompressor(level=self.level, write_content_size=False).compressobj()
        packed = bytearray()
        for part in parts:
            packed += compressor.compress(_apart(part))
        packed += compressor.flush()
        return torch.frombuffer(packed, dtype=torch.uint8)

    @staticmethod
    def unpack(packed: Tensor) -> Unpacking:
        """A reader of the parts, in their order."""
        return Unpacking(packed)


class Unpacking:
    """Reads the parts of a stream one after the other; nothing in it is believed."""

    def __init__(self, packed: Tensor) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._data = memoryview(packed.contiguous().numpy())  # type: ignore[arg-type]
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WIDEST_WINDOW)
        self._stream = decompressor.stream_reader(self._data)

    def take(self, spec: TensorSpec) -> Tensor:
        """The next part; raises ModelError where the stream has no such part left."""
        import numpy as np
        import torch

        width = spec.item_size
        values = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
        whole = values.view(-1).view(torch.uint8).numpy()
        if width == 1:
            self._fill(memoryview(whole))  # type: ignore[arg-type]
            return values
        kind = np.empty(spec.count, np.uint8)
        for number in range(width):
            self._fill(memoryview(kind))  # type: ignore[arg-type]
            whole[number::width] = kind
        return values

    def finish(self) -> None:
        """Raises ModelError where more is there than was asked for."""
        if self._read(memoryview(bytearray(1))):
            raise ModelError("the stream goes on after its last tensor")

    def _fill(self, buffer: memoryview) -> None:
        while buffer:
            count = self._read(buffer)
            if not count:
                raise ModelError("the stream ends before its last tensor")
            buffer = buffer[count:]

    def _read(self, buffer: memoryview) -> int:
        try:
            return int(self._stream.readinto(buffer))
        except self._error as error:
            raise ModelError(f"the stream is damaged: {error}") from error


def _apart(part: Tensor) -> memoryview:
    """A tensor's bytes, those of a kind side by side."""
    import numpy as np
    import torch

    width = part.element_size()
    whole = part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    apart = whole if width == 1 else np.concatenate([whole[number::width] for number in range(width)])
    return memoryview(apart)  # type: ignore[arg-type]
