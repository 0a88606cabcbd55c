"""Closing a round on disk: the updates become the next model, and the user's own copies of it.

The one place where a run's files meet a strategy; the coordinator and `aggregate --commit` both come here.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from fedctl.errors import ModelError
from fedctl.events import RoundAggregated
from fedctl.measures import global_scores
from fedctl.rundir import RunDir, copy_atomically
from fedctl.state import RunState
from fedctl.strategies import Strategy, uses_controls


def close_round(
    run: RunDir,
    state: RunState,
    *,
    contributors: Sequence[str],
    strategy: Strategy,
    model_args: Mapping[str, Any],
    at: Callable[[], datetime],
) -> RoundAggregated:
    """Aggregate the open round's updates into its model and publish that as the run's newest; idempotent.

    The model, and what the strategy remembers, are on the disk for good when this returns.

    Raises ModelError when a file is damaged or the result is not finite.
    """
    from fedctl.aggregation import aggregate_round

    if state.open is None:
        raise ModelError(f"run {run.name} has no open round")
    number = state.open.number
    memory = run.memory(number - 1)
    closed = aggregate_round(
        model=run.round_model(number - 1),
        updates={
            name: (run.update(number, name), update.examples)
            for name, update in state.open.updates.items()
            if name in contributors
        },
        memory=memory if memory.exists() else None,
        strategy=strategy,
        model_out=run.round_model(number),
        memory_out=run.memory(number),
        steps={name: update.steps for name, update in state.open.updates.items()},
        losses=losses_of(state, number - 1),
    )
    if closed.memory is None:
        run.memory(number).unlink(missing_ok=True)  # of a coordinator that died here, and another strategy's
    run.sync(run.round_model(number))
    publish(run, number, model_args)
    sent = closed.memory if uses_controls(strategy) else None
    return RoundAggregated(at=at(), round=number, model=closed.model, contributors=tuple(contributors), memory=sent)


def losses_of(state: RunState, number: int) -> dict[str, float]:
    """What each node's validation said of a round's model, where the run is judged by a loss: the less, the better."""
    scores = global_scores(state, number) if state.mode == "min" else {}
    return {name: score.metrics[state.metric] for name, score in scores.items() if state.metric in score.metrics}


def publish(run: RunDir, number: int, model_args: Mapping[str, Any]) -> None:
    """Make a round's model the run's `model.safetensors` and `model.ckpt`."""
    from fedctl.division import united
    from fedctl.weights import save, save_checkpoint

    whole = united(run.round_model(number), run.rest)
    if run.rest.exists():
        save(run.model, whole)
    else:
        copy_atomically(run.round_model(number), run.model)
    save_checkpoint(run.checkpoint, whole, model_args)
