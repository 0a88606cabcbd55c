"""The codec `none`: weights travel as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Plain:
    """Both ways the identity; nothing is copied and nothing is read before it is used."""

    def encode(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return weights

    def decode(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return tensors
