"""Updates as whole numbers modulo 2^16, 2^32 or 2^64: fixed point that is sized for the cohort, so no sum overflows."""

from __future__ import annotations

import math
import secrets
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fedctl.strictjson import a_count, a_number, fields_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RINGS = (16, 32, 64)
"""Bits of a ring's elements."""
_RUN = 1 << 15
"""Elements at a time; the buffers stay in the processor's cache."""
_FINEST = 2**40 - 1
"""Levels at most: a float64 tells each of them, and a thousandth of it, by which it is rounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Fixed point for the sum of `cohort` values of at most `range` each.

    x becomes l steps of range / `levels`, |l| <= levels; cohort * levels is below 2^(bits - 1).
    """

    bits: int
    range: float
    cohort: int
    levels: int

    def __post_init__(self) -> None:
        if self.bits not in RINGS:
            raise ValueError(f"a ring has 16, 32 or 64 bits, not {self.bits}")
        if not 0 < self.range < math.inf or self.cohort < 1:
            raise ValueError("a scale has a finite range above 0 and a cohort of at least one")
        if not 1 <= self.levels <= min(_FINEST, _largest(self.bits) // self.cohort):
            raise ValueError(f"a sum of {self.cohort} times {self.levels} levels does not fit {self.bits} bits")
        if not 0 < self.levels / self.range < math.inf or not self.step > 0:
            raise ValueError(f"no float64 tells the steps of {self.range} / {self.levels} apart")

    @classmethod
    def of(cls, range: float, cohort: int, *, bits: int = 32, level_bits: int | None = None) -> Scale:
        """The finest scale of a ring, or one whose values have `level_bits` bits each (8: from -127 to 127).

        Raises ValueError where the ring is too small for the cohort.
        """
        finest = min(_FINEST, _largest(bits) // max(cohort, 1))
        return cls(bits=bits, range=range, cohort=cohort, levels=_largest(level_bits) if level_bits else finest)

    @property
    def step(self) -> float:
        """What one level is worth."""
        return self.range / self.levels

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of ring elements: uint16, uint32 or uint64, little-endian."""
        import numpy as np

        return np.dtype(f"<u{self.bits // 8}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Scale:
        fields = fields_of(value, cls)
        counts = {name: a_count(fields[name], name) for name in ("bits", "cohort", "levels")}
        return cls(**counts, range=a_number(fields["range"], "range"))

    def encode(
        self, values: NDArray[Any], *, out: NDArray[Any] | None = None, key: bytes | None = None
    ) -> tuple[NDArray[Any], int]:
        """Values as ring elements, and how many of them were beyond the range and are its nearer end now.

        `values` are float32 or float64, flat; `out`, where it is given, takes the elements. Each value becomes one of
        the two levels around it, with the chance that makes it right on average; `key` (32 bytes; None: fresh ones)
        decides. Raises ValueError for a value that is not finite.
        """
        import numpy as np

        from fedctl.secagg.masks import Keystream

        elements = np.empty(len(values), self.dtype) if out is None else out
        signed = elements.view(f"<i{self.bits // 8}")
        stream, beyond = Keystream(key or secrets.token_bytes(32)), 0
        levels, floors, chances = np.empty(_RUN), np.empty(_RUN), np.empty(_RUN, "<u4")
        per_unit, most = self.levels / self.range, float(self.levels)
        for start in range(0, len(values), _RUN):
            part = slice(start, min(start + _RUN, len(values)))
            level, floor, chance = (each[: part.stop - start] for each in (levels, floors, chances))
            stream.fill(chance)
            np.multiply(values[part], per_unit, out=level, dtype=np.float64)
            lowest, highest = float(level.min()), float(level.max())
            if not math.isfinite(lowest) or not math.isfinite(highest):
                raise ValueError("a value is not finite")
            if lowest < -most or highest > most:
                beyond += int(np.count_nonzero(np.abs(values[part].astype(np.float64)) > self.range))
                np.clip(level, -most, most, out=level)
            np.floor(level, out=floor)
            level -= floor
            level *= 2.0**32
            floor += chance < level
            np.copyto(signed[part], floor, casting="unsafe")
        return elements, beyond

    def decode(self, total: NDArray[Any], dtype: Any = "float64") -> NDArray[Any]:
        """What ring elements stand for: a whole number of steps, times the step, rounded to float64, then `dtype`."""
        import numpy as np

        if total.dtype != self.dtype:
            raise ValueError(f"elements of {self.bits} bits are expected, not {total.dtype}")
        values = np.empty(total.shape, dtype)
        signed = total.view(f"<i{self.bits // 8}")
        for start in range(0, len(total), _RUN):
            part = slice(start, start + _RUN)
            np.copyto(values[part], signed[part] * self.step, casting="same_kind")
        return values


def _largest(bits: int) -> int:
    return int(2 ** (bits - 1) - 1)
