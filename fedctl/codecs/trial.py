"""What codecs make of a model's changes before there are any.

A made-up change, long in its tails as those of trainings are, goes through them.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from fedctl.codecs.pipeline import Pipeline, seed_of
from fedctl.codecs.wire import Outgoing
from fedctl.header import write_header
from fedctl.weights import Lazy, Weights, spec_of

MOST_TRIED = 1 << 20
"""Elements of a tensor that are tried, its first rows; a larger one counts by their share."""
MOVED = 0.05
"""How far the change moves a tensor, as a share of its norm."""


def ratio(model: Path, pipeline: Pipeline) -> float:
    """The size of a made-up change of the model as the pipeline has it travel, over that of the model."""
    base = {name: _part(tensor) for name, tensor in Weights.open(model).items()}
    spec = spec_of(base)

    def moved(name: str) -> Tensor:
        tensor, random = base[name], torch.Generator().manual_seed(seed_of(0, name))
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=random) * torch.randn(tensor.shape, generator=random)
        wide = tensor.float() if tensor.itemsize == 1 else tensor
        return (wide + (MOVED * tensor.float().square().mean().sqrt() * noise).to(wide.dtype)).to(tensor.dtype)

    raw = len(write_header(spec, list(spec), {})) + sum(one.size for one in spec.values())
    with tempfile.TemporaryDirectory(prefix="fedctl-") as folder:
        coded = Outgoing(pipeline=pipeline, tensors=Lazy(spec, moved), base=base)
        return coded.save(Path(folder) / "coded.safetensors", spec).size / raw


def _part(tensor: Tensor) -> Tensor:
    """The first rows of a tensor, at most so many that they can be tried."""
    if tensor.numel() <= MOST_TRIED or tensor.dim() == 0:
        return tensor
    rows = max(1, MOST_TRIED * len(tensor) // tensor.numel())
    return tensor[:rows]
