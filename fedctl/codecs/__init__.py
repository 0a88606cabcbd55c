"""The family of codecs: how an update, or a model on its way to the nodes, becomes fewer bytes, and comes back.

Owns the protocol of one step, the table of names and their order; `pipeline` puts the steps together, `wire` makes
files of them. The nodes run this package too, under Python 3.10 or newer; a name and its options are checked without
importing torch. A new codec is one file here and a line in `CODECS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from fedctl.families import imported, target_of

if TYPE_CHECKING:
    from torch import Tensor

    from fedctl.header import TensorSpec

CODECS: Mapping[str, str] = {
    "delta": "fedctl.codecs.delta:Delta",
    "topk": "fedctl.codecs.topk:TopK",
    "randk": "fedctl.codecs.randk:RandK",
    "powersgd": "fedctl.codecs.powersgd:PowerSGD",
    "bf16": "fedctl.codecs.bf16:BF16",
    "fp16": "fedctl.codecs.fp16:FP16",
    "int8": "fedctl.codecs.int8:Int8",
    "int4": "fedctl.codecs.int4:Int4",
    "zstd": "fedctl.codecs.zstd:Zstd",
}
Step = Literal["difference", "selection", "precision", "bytes"]
ORDER: tuple[Step, ...] = ("difference", "selection", "precision", "bytes")
"""What a codec does, in the order in which codecs may follow each other; at most one of each."""


class Codec(Protocol):
    """A frozen dataclass whose fields are its options, which `__post_init__` bounds by a ValueError.

    `exact_everywhere` says whether it decodes the same bits on every machine.
    """

    step: ClassVar[Step]
    exact_everywhere: ClassVar[bool]


class TensorCodec(Codec, Protocol):
    """A step on the floating values of one tensor: the parts that stand for it, and back.

    `carried` says how many of the parts, from the first on, hold values that the next step may encode in turn. Values
    are float32, or float64 where the model's are. `seed` is the tensor's own, below 2**63: the same on both sides.
    """

    carried: ClassVar[int]

    def layout(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """What the parts of such a tensor are; it depends on nothing else."""
        ...

    def encode(self, values: Tensor, seed: int) -> tuple[Tensor, ...]:
        """The parts that stand for `values`; not finite values give parts that decode to not finite ones."""
        ...

    def decode(self, parts: Sequence[Tensor], spec: TensorSpec, seed: int) -> Tensor:
        """Values of the shape and dtype of `spec`; whatever the parts hold, as long as they have the layout."""
        ...


def kind_of(name: str) -> type[Any]:
    """The dataclass of the codec of that name; `my_package.module:Class`, or `file.py:Class`, is one's own.

    Raises ConfigError where there is none.
    """
    return imported(target_of(name, CODECS, family="codec", plural="codecs"), family="codec")


def build(stage: Mapping[str, Any]) -> Any:
    """The codec that a task names, such as `{"name": "topk", "keep": 0.01}`, with options that were checked before."""
    options = dict(stage)
    return kind_of(options.pop("name"))(**options)
