"""The family of codecs: how a node's weights become the tensors that travel, and come back.

A codec turns tensors into tensors, so whatever travels is a safetensors file. The nodes run this package too, under
Python 3.10 or newer; a name is checked without importing torch. A new codec is one file here and a line in `CODECS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from fedctl.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from torch import Tensor

CODECS: Mapping[str, str] = {"none": "fedctl.codecs.plain:Plain"}


class Codec(Protocol):
    """How tensors travel: `decode(encode(weights))` has the names, shapes and dtypes of `weights`."""

    def encode(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors that travel in place of `weights`."""
        ...

    def decode(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights that travelled as `tensors`."""
        ...


def build(name: str) -> Codec:
    """The codec of that name; raises ConfigError where there is none."""
    if name not in CODECS:
        hint = suggestion(name, CODECS, f"the codecs are {', '.join(CODECS)}")
        raise ConfigError(f"codec: there is none called {name!r}", hint=hint)
    module, _, member = CODECS[name].partition(":")
    codec: Codec = getattr(importlib.import_module(module), member)()
    return codec
