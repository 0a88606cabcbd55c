"""Masks: the keystream of AES-256 in counter mode, as ring elements, added to vectors or taken from them.

Every element of the ring is as likely as any other, and to know a mask is to know the 256 bits of its key. The way of
a vector through memory is what costs beside the cipher, so it is walked once, and all masks meet each block in turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 256 << 10
"""Bytes at a time: two of them stay in the processor's cache."""
_ZEROS = memoryview(bytes(BLOCK))


class Keystream:
    """The stream of one key (32 bytes), which makes one."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(AES256(key), CTR(bytes(16))).encryptor()

    def fill(self, block: NDArray[Any]) -> None:
        """The stream's next bytes, at most `BLOCK` of them, in place of what a flat block of memory holds."""
        self._cipher.update_into(_ZEROS[: block.nbytes], block.data.cast("B"))


def add_keystreams(vector: NDArray[Any], *, added: Iterable[bytes] = (), taken: Iterable[bytes] = ()) -> None:
    """Add to a vector in place the keystreams of some keys, and take those of others, in its ring."""
    import numpy as np

    check_vector(vector)
    streams = [(Keystream(key), np.add) for key in added] + [(Keystream(key), np.subtract) for key in taken]
    masks = np.empty(BLOCK // vector.itemsize, vector.dtype)
    for start in range(0, len(vector), len(masks)):
        part = vector[start : start + len(masks)]
        mask = masks[: len(part)]
        for stream, change in streams:
            stream.fill(mask)
            change(part, mask, out=part)


def check_vector(vector: NDArray[Any]) -> None:
    """Raise ValueError where a vector is not flat, of one piece, and of unsigned whole numbers of a ring."""
    if vector.dtype.str not in {"<u2", "<u4", "<u8"} or vector.ndim != 1 or not vector.flags.c_contiguous:
        raise ValueError("a vector is flat, in one piece, and of uint16, uint32 or uint64")
