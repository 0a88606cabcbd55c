"""From files of updates to a file of the next model.

`aggregate_round` is the coordinator's: one round of a run. `aggregate_files` is the user's: any files of weights, no
run needed. Both stream tensor by tensor; nothing here knows of nodes, journals or run directories.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fedctl.division import due
from fedctl.errors import FedctlError, ModelError, UsageError
from fedctl.federation import Named
from fedctl.heap import give_back_what_is_freed
from fedctl.records import Blob
from fedctl.share import EVERYTHING, Share
from fedctl.soundness import check_controls, check_finite, check_spec, check_update
from fedctl.strategies import Contribution, Strategy, build, uses_controls
from fedctl.strategies.elementwise import CHUNK, Moved, in_a_row, is_averaged, norm, scaled
from fedctl.weights import (
    Lazy,
    Weights,
    digest,
    joined,
    part,
    read_file,
    read_hyper_parameters,
    save,
    save_checkpoint,
    spec_of,
    split,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """An update that began from the model in `base`, not from the newest: of its way from there a `share` counts."""

    base: Path
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Contributor:
    """One file of an aggregate: its `share` of the weight (None: the strategy knows none), and how far it lies off.

    `distance` is the norm of file - result over the norm of result, of all floating values; None where the result is 0,
    or so small that their ratio is beyond a double.
    """

    name: str
    share: float | None
    distance: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateReport:
    """What `aggregate_files` did; `parameters` counts the elements of all tensors."""

    output: Path
    blob: Blob
    strategy: str
    tensors: int
    parameters: int
    contributors: tuple[Contributor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """What `aggregate_round` wrote: the next model, and what the strategy remembers (None: nothing)."""

    model: Blob
    memory: Blob | None = None


def aggregate_files(
    files: Sequence[Path],
    *,
    output: Path,
    strategy: Named,
    weights: Sequence[float] | None = None,
    model: Path | None = None,
    memory: Path | None = None,
    steps: Sequence[int] | None = None,
    losses: Sequence[float | None] | None = None,
    late: Sequence[Late | None] | None = None,
    rest: Path | None = None,
    in_part: bool = False,
    force: bool = False,
) -> AggregateReport:
    """Aggregate .safetensors, .ckpt, .pt or .pth files into `output`, a .safetensors or a .ckpt that Lightning loads.

    Every file counts alike unless `weights` has a number for each. `model` is the one that the files were trained from,
    for the strategies that move it, and `memory` what the strategy kept of an earlier round; `steps` and `losses` are
    each file's, as `Contribution` takes them, and `late` says which began from another model. Controls beside the
    weights of a file go to a strategy that uses them, and else are left out. What is in `rest` goes into `output`
    beside the result, and with `in_part` so does what `model` has and the files have not. A .ckpt takes its
    hyper-parameters from the first file.

    Raises UsageError for a file that is missing, an `output` that exists (unless `force`) or has another suffix, and
    weights that are no weights; ConfigError for the strategy; ModelError, naming files and tensor, for content.
    """
    give_back_what_is_freed()
    rule = build(strategy, folder=Path.cwd())
    counted = _checked_weights(weights, len(files), strategy.name if not rule.weighted else None)
    _check_paths([*files, *filter(None, (model, memory))], output, force=force)
    read = [read_file(path) for path in files]
    halves = [split(found) for found in read]
    first, with_controls = halves[0][0], uses_controls(rule)
    for path, found, (own, _) in zip(files, read, halves, strict=True):
        whole = found if with_controls else own
        check_update(whole, first, what=str(path), against=str(files[0]), controls=with_controls)
    before = read_file(model) if model else {}
    start = part(before, [name for name in before if name in first]) if in_part else before
    if model:
        check_update(start, first, what=str(model), against=str(files[0]))

    shares = scaled(counted)
    weighed = [_moved(start, own, way) for (own, _), way in zip(halves, late or [None] * len(files), strict=True)]
    told = zip(files, counted, weighed, halves, steps or [0] * len(files), losses or [None] * len(files), strict=True)
    updates = [
        Contribution(
            name=str(path),
            weight=weight,
            weights=own,
            steps=taken,
            loss=loss,
            controls=beside if with_controls else {},
        )
        for path, weight, own, (_, beside), taken, loss in told
    ]
    kept = Weights.open(memory) if memory else {}
    made = rule.aggregate(start, updates, kept).model
    check_spec(spec_of(made), spec_of(first), what="the aggregated model", against=str(files[0]))
    result = _checked(made)
    for more in ([before] if in_part else []) + ([Weights.open(rest)] if rest else []):
        result = joined(result, more)
    if output.suffix == ".ckpt":
        save_checkpoint(output, result, read_hyper_parameters(files[0]))
        blob = digest(output)
    else:
        blob = save(output, result)
    spec = spec_of(first)
    written = part(read_file(output), spec)
    return AggregateReport(
        output=output,
        blob=blob,
        strategy=strategy.name,
        tensors=len(spec),
        parameters=sum(tensor.count for tensor in spec.values()),
        contributors=tuple(
            Contributor(
                name=update.name,
                share=share / math.fsum(shares) if rule.weighted else None,
                distance=_distance(update.weights, written),
            )
            for update, share in zip(updates, shares, strict=True)
        ),
    )


def aggregate_round(
    model: Path,
    updates: Mapping[str, tuple[Path, int]],
    *,
    memory: Path | None,
    strategy: Strategy,
    model_out: Path,
    memory_out: Path | None,
    steps: Mapping[str, int] | None = None,
    losses: Mapping[str, float] | None = None,
    late: Mapping[str, Late] | None = None,
    share: Share = EVERYTHING,
    round: int = 1,
    metadata: Mapping[str, str] | None = None,
) -> Closed:
    """Write the next model to `model_out`, last of all.

    `updates` has the file and the number of examples of each node, by its name; they have passed `check_update`.
    `steps` and `losses` have what is known besides, as `Contribution` takes it, and `late` those that began earlier.
    Of the model a `round` shares what `share` says, and the rest of it stays as it was.
    `memory` is the previous round's `memory_out`, where there is one; a strategy without memory writes none.
    Controls beside an update's weights go to a strategy that uses them, and else are left out. The model's file says
    what is in `metadata`.
    Raises ModelError for a file that is not sound, and for a strategy that makes values NaN or infinite.
    """
    give_back_what_is_freed()
    before = Weights.open(model)
    start = due(before, share, round)
    remembered = Weights.open(memory) if memory else {}
    if not start:
        carried = save(memory_out, remembered) if remembered and memory_out else None
        return Closed(model=save(model_out, before, metadata), memory=carried)
    contributions = []
    for name, (path, examples) in updates.items():
        weights, controls = split(Weights.open(path))
        check_spec(spec_of(weights), start.spec, what=f"update of {name}")
        check_controls(spec_of(controls), start.spec, what=f"update of {name}")
        contributions.append(
            Contribution(
                name=name,
                weight=examples,
                weights=_moved(start, weights, (late or {}).get(name)),
                steps=(steps or {}).get(name, 0),
                loss=(losses or {}).get(name),
                controls=controls if uses_controls(strategy) else {},
            )
        )
    try:
        outcome = strategy.aggregate(start, contributions, remembered)
        check_spec(spec_of(outcome.model), start.spec, what="the aggregated model")
        kept = _checked(outcome.memory, "the strategy's memory") if uses_controls(strategy) else outcome.memory
        if share.is_scheduled:
            kept = joined(kept, remembered)
        written = save(memory_out, kept) if kept and memory_out else None
        return Closed(model=save(model_out, joined(_checked(outcome.model), before), metadata), memory=written)
    except (FedctlError, OSError):
        raise
    except Exception as error:  # a user's own strategy may raise anything
        raise ModelError(f"the strategy {type(strategy).__name__} failed: {type(error).__name__}: {error}") from error


def _moved(start: Mapping[str, Tensor], update: Mapping[str, Tensor], late: Late | None) -> Mapping[str, Tensor]:
    """The update as if it had begun from `start`; one that did stays as it is."""
    return Moved(start, update, late.share, Weights.open(late.base)) if late else update


def _checked_weights(weights: Sequence[float] | None, files: int, unweighted: str | None) -> list[float]:
    """The weight of each file; `unweighted` names a strategy that has no use for weights."""
    if files == 0:
        raise UsageError("no files to aggregate")
    if weights is None:
        return [1.0] * files
    if unweighted:
        raise UsageError(f"{unweighted} counts every file alike, so it takes no weights")
    if len(weights) != files:
        raise UsageError(f"{files} files need as many weights, not {len(weights)}")
    for weight in weights:
        if not (math.isfinite(weight) and weight >= 0):
            raise UsageError(f"a weight should be a number from 0, not {weight}")
    if not any(weights):
        raise UsageError("the weights are all 0")
    return [float(weight) for weight in weights]


def _check_paths(files: Sequence[Path], output: Path, *, force: bool) -> None:
    for path in files:
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
    if output.suffix not in {".safetensors", ".ckpt"}:
        raise UsageError(f"{output}: should end in .safetensors or .ckpt")
    if output.exists() and not force:
        raise UsageError(f"{output} exists already", hint="choose another name, or give --force to replace it")
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent}: no such folder")


def _checked(tensors: Mapping[str, Tensor], what: str = "the aggregated model") -> Lazy:
    """The same tensors, each of which is checked when it is computed."""

    def checked(name: str) -> Tensor:
        tensor = tensors[name]
        check_finite(name, tensor, what=what)
        return tensor

    return Lazy(spec_of(tensors), checked)


def _distance(update: Mapping[str, Tensor], result: Mapping[str, Tensor]) -> float | None:
    apart = size = 0.0
    for name, spec in spec_of(result).items():
        if is_averaged(spec):
            ours, theirs = in_a_row(update[name]), in_a_row(result[name])
            for start in range(0, len(theirs), CHUNK):
                a, b = (values[start : start + CHUNK].double() for values in (ours, theirs))
                apart, size = math.hypot(apart, norm(a - b)), math.hypot(size, norm(b))
    return ratio if size and math.isfinite(ratio := apart / size) else None
