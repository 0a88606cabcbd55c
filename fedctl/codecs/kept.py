"""How many of a tensor's values a share of them is: what `topk` and `randk` have in common."""

from __future__ import annotations

import math


def check_keep(keep: float) -> None:
    """Refuse, with the ValueError that options take, what is no share."""
    if not 0 < keep <= 1:
        raise ValueError(f"keep should be above 0 and at most 1, not {keep}")


def kept(count: int, keep: float) -> int:
    """That share of `count` values, rounded up; one at least."""
    return max(1, min(count, math.ceil(keep * count)))
