"""What codecs make of a model's changes before there are any.

A made-up change, long in its tails as those of trainings are, goes through them.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from fedctl.codecs.pipeline import Pipeline
from fedctl.codecs.wire import Outgoing
from fedctl.weights import Weights, save, spec_of

MOST_TRIED = 1 << 20
"""Elements of a tensor that are tried, its first rows; a larger one counts by their share."""
MOVED = 0.05
"""How far the change moves a tensor, as a share of its norm."""


def ratio(model: Path, pipeline: Pipeline) -> float:
    """The size of a made-up change of the model as the pipeline has it travel, over that of the model."""
    random = torch.Generator().manual_seed(0)

    def moved(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=random) * torch.randn(tensor.shape, generator=random)
        wide = tensor.float() if tensor.itemsize == 1 else tensor
        return (wide + (MOVED * tensor.float().square().mean().sqrt() * noise).to(wide.dtype)).to(tensor.dtype)

    base = {name: _part(tensor) for name, tensor in Weights.open(model).items()}
    update = {name: moved(tensor) for name, tensor in base.items()}
    with tempfile.TemporaryDirectory(prefix="fedctl-") as folder:
        raw = save(Path(folder) / "raw.safetensors", update).size
        coded = Outgoing(pipeline=pipeline, tensors=update, base=base)
        return coded.save(Path(folder) / "coded.safetensors", spec_of(base)).size / raw


def _part(tensor: Tensor) -> Tensor:
    """The first rows of a tensor, at most so many that they can be tried."""
    if tensor.numel() <= MOST_TRIED or tensor.dim() == 0:
        return tensor
    rows = max(1, MOST_TRIED * len(tensor) // tensor.numel())
    return tensor[:rows]
