"""How many of a tensor's values a share of them is: what `topk` and `randk` have in common."""

from __future__ import annotations

import math

WHOLE = 2048
"""Tensors of so many values at most are better sent whole: they are few bytes, and much of what is learned first."""


def check_kept(keep: float, whole: int) -> None:
    """Refuse, with the ValueError that options take, what is no share, or no number of values."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep should be above 0 and at most 1, not {keep}")
    if whole < 0:
        raise ValueError(f"whole should be 0 or more, not {whole}")


def kept(count: int, keep: float, whole: int) -> int:
    """That share of `count` values, rounded up, one at least; all of them where they are `whole` at most."""
    if count <= whole:
        return count
    return max(1, min(count, math.ceil(keep * count)))
