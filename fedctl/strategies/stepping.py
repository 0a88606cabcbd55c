"""A server's optimizer over rounds: the mean of the updates taken as a gradient, a step of torch.optim's a round.

The gradient is the model less the mean. A step sees chunks of values in the wider type and changes them in place, and
what the optimizer keeps is the strategy's memory: a tensor `name/state` for each state of each stepped tensor, and
`name/steps`, the number of its steps so far: a round may share a part of a model.
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from fedctl.header import TensorSpec
from fedctl.strategies import Contribution, Outcome
from fedctl.strategies.elementwise import (
    each,
    in_a_row,
    in_name_order,
    is_averaged,
    length,
    mean,
    over_chunks,
    remembered,
    require_start,
    scaled,
    values_of,
    wide,
)
from fedctl.weights import Lazy, spec_of

Step = Callable[[Tensor, Tensor, Sequence[Tensor], float], None]
"""Changes values and states in place, given the gradient and the number of steps before this one."""

MOMENTUM = ("momentum_buffer",)
"""What `momentum_step` keeps."""

_STEPS = "/steps"

_MODEL = ""  # no state is called so


def momentum_step(*, lr: float, momentum: float, nesterov: bool) -> Step:
    """A step of torch.optim's SGD with momentum, in the form of Nesterov or the plain one."""

    def step(values: Tensor, gradient: Tensor, states: Sequence[Tensor], _: float) -> None:
        sgd(
            [values],
            [gradient],
            [states[0]],
            foreach=False,
            weight_decay=0,
            momentum=momentum,
            lr=lr,
            dampening=0,
            nesterov=nesterov,
            maximize=False,
        )

    return step


def stepped(
    name: str,
    model: Mapping[str, Tensor],
    updates: Sequence[Contribution],
    memory: Mapping[str, Tensor],
    *,
    step: Step,
    states: tuple[str, ...],
    buffers: Collection[str],
) -> Outcome:
    """The model one step on, and the states, which begin at 0; `name` is the strategy's.

    Tensors that match a pattern of `buffers`, integers and booleans are combined as `fedavg` does. Model and memory
    each read every update once. Raises ModelError where `model` is empty.
    """
    require_start(name, model)
    ordered = in_name_order(updates)
    average = partial(mean, weights=scaled([update.weight for update in ordered]))
    averaged, spec = each(average, ordered), spec_of(ordered[0].weights)
    moved = {
        name: tensor
        for name, tensor in spec.items()
        if is_averaged(tensor) and not any(fnmatchcase(name, pattern) for pattern in buffers)
    }
    kept = {f"{name}/{state}": _of_state(moved[name]) for name in moved for state in states}
    counted = {name + _STEPS: TensorSpec("int64", ()) for name in moved}

    def before(name: str) -> int:
        return int(memory[name + _STEPS]) if name + _STEPS in memory else 0

    def results(name: str, wanted: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
        """The model's tensor or its states, as `wanted` has them by their keys."""
        tensors = {key: torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype)) for key, tensor in wanted.items()}
        outs = {key: in_a_row(tensor) for key, tensor in tensors.items()}
        keys = [f"{name}/{state}" for state in states]
        old = [remembered(memory, key, length(spec[name])) for key in keys]
        start, ends = values_of(model, name), [values_of(update.weights, name) for update in ordered]

        def work(part: slice) -> None:
            values = start[part].to(wide(start[part].dtype), copy=True)
            now = [row[part].to(values.dtype, copy=True) for row in old]
            step(values, values - average([row[part] for row in ends]), now, before(name))
            for key, found in zip([_MODEL, *keys], [values, *now], strict=True):
                if key in outs:
                    outs[key][part].copy_(found)

        deque(over_chunks(work, length(spec[name])), maxlen=0)
        return tensors

    held: dict[str, Tensor] = {}

    def state(key: str) -> Tensor:
        if key in counted:
            return torch.tensor(before(key.removesuffix(_STEPS)) + 1)
        if key not in held:  # the states of a tensor are computed together, and asked for one after the other
            held.clear()
            name = key.rpartition("/")[0]
            held.update(results(name, {key: kept[key] for key in (f"{name}/{state}" for state in states)}))
        return held.pop(key)

    def tensor(name: str) -> Tensor:
        return results(name, {_MODEL: spec[name]})[_MODEL] if name in moved else averaged[name]

    return Outcome(model=Lazy(spec, tensor), memory=Lazy({**kept, **counted}, state))


def _of_state(tensor: TensorSpec) -> TensorSpec:
    """Real values in at least single precision: narrow ones would not move by small steps."""
    shape = (*tensor.shape, 2) if tensor.dtype.startswith("complex") else tensor.shape
    return TensorSpec("float64" if tensor.dtype == "float64" else "float32", shape)
