"""Closing a round on disk: the updates become the next model, and the user's own copies of it.

The one place where a run's files meet a strategy; the coordinator and `aggregate --commit` both come here.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedctl.codecs.pipeline import Pipeline, seed_of_model
from fedctl.durable import copy_atomically, digest, write_atomically
from fedctl.errors import ModelError
from fedctl.events import RoundAbandoned, RoundAggregated
from fedctl.federation import Federation
from fedctl.measures import global_scores
from fedctl.relay import unmask
from fedctl.rundir import RunDir
from fedctl.spending import spending, with_noise
from fedctl.staleness import Staleness
from fedctl.state import RoundState, RunState
from fedctl.strategies import Strategy, uses_controls

if TYPE_CHECKING:
    from fedctl.aggregation import Late
    from fedctl.dp.noise import Generator
    from fedctl.secagg.unmasking import FalseShares


def close_round(
    run: RunDir,
    state: RunState,
    *,
    contributors: Sequence[str],
    strategy: Strategy,
    staleness: Staleness,
    federation: Federation,
    down: Pipeline,
    at: Callable[[], datetime],
    remembers: bool = True,
) -> RoundAggregated | RoundAbandoned:
    """Aggregate the open round's updates into its model and publish that as the run's newest; idempotent.

    Where what nodes reveal does not take the masks off, the round is abandoned: its model is the one before.

    The `federation` says what of the model is shared, and what of the updates the coordinator may learn. By `down` the
    model travels to the nodes. Unless it `remembers`, the strategy has no use for what the one before left: it is
    another.

    The model, and what the strategy remembers, are on the disk for good when this returns. The key of the noise is for
    the caller to remove, once the journal has the event.

    Raises ModelError when a file is damaged or the result is not finite.
    """
    from fedctl.aggregation import aggregate_round

    if state.open is None:
        raise ModelError(f"run {run.name} has no open round")
    number, share, privacy = state.open.number, federation.share, federation.privacy
    memory = run.memory(number - 1)
    is_whole = down.is_plain and not share.is_scheduled
    made = run.round_model(number) if is_whole else run.aggregate(number)
    run.round(number).mkdir(parents=True, exist_ok=True)  # no update was asked for in it, where all began earlier
    updates = {
        name: (run.answer(update.key), update.examples)
        for name, update in state.open.updates.items()
        if name in contributors
    }
    remembered = memory if remembers and memory.exists() else None
    rounding = 0.0
    if state.open.secure:
        from fedctl.secagg.unmasking import FalseShares

        try:
            mean, counted, rounding = unmask(run, number, state.open.steps, federation)
        except FalseShares as error:
            return _abandoned(run, state, state.open, federation, error, at)
        updates = {"mean": (mean, counted)}
    if privacy.is_counted_by_node:
        strategy = with_noise(strategy, federation, _noise(run, state.open, contributors, remembered), rounding)
    spent = spending(state, federation)
    promise = spent.metadata if spent else {}
    closed = aggregate_round(
        model=run.round_model(number - 1),
        updates=updates,
        memory=remembered,
        strategy=strategy,
        model_out=made,
        memory_out=run.memory(number),
        steps={name: update.steps for name, update in state.open.updates.items()},
        losses=losses_of(state, number - 1),
        late=late(run, number, {name: one.key.round for name, one in state.open.updates.items()}, staleness),
        share=share,
        round=number,
        metadata=promise,
    )
    if closed.memory is None:
        run.memory(number).unlink(missing_ok=True)  # of a coordinator that died here, and another strategy's
    model, difference = closed.model, None
    if not is_whole:
        from fedctl.downlink import shorten

        shortened = shorten(
            made,
            pipeline=down,
            seed=seed_of_model(state.model_of(number - 1)),
            previous=run.round_model(number - 1),
            residual=run.residual(number - 1),
            model_out=run.round_model(number),
            difference_out=run.difference(number),
            residual_out=run.residual(number),
        )
        model, difference = shortened.model, shortened.difference
        made.unlink()
        run.residual(number - 2).unlink(missing_ok=True)  # the last round's is read again where this one is closed anew
    run.sync(run.round_model(number))
    publish(run, number, federation.task.model_args, promise)
    return RoundAggregated(
        at=at(),
        round=number,
        model=model,
        contributors=tuple(contributors),
        memory=closed.memory if uses_controls(strategy) else None,
        difference=difference,
        epsilon=spent.epsilon if spent else None,
        epsilon_next=spent.epsilon_next if spent else None,
    )


def _abandoned(
    run: RunDir,
    state: RunState,
    opened: RoundState,
    federation: Federation,
    error: "FalseShares",
    at: Callable[[], datetime],
) -> RoundAbandoned:
    """What the next round begins from, and the strategy goes on with, is what this one did.

    It goes on without those whose secrets were not told, while they are few: else it is rather the holders who lie.
    """
    number = opened.number
    for of in (run.memory, run.residual, run.round_model):
        if of(number - 1).exists():
            copy_atomically(of(number - 1), of(number))
    run.residual(number - 2).unlink(missing_ok=True)
    run.sync(run.round_model(number))
    spent = spending(state, federation)
    are_few = 2 * len(error.nodes) < len(opened.steps["shares"])
    return RoundAbandoned(
        at=at(),
        round=number,
        nodes=error.nodes if are_few else (),
        reason=error.message,
        epsilon=spent.epsilon if spent else None,
        epsilon_next=spent.epsilon_next if spent else None,
    )


def _noise(run: RunDir, opened: RoundState, contributors: Sequence[str], memory: Path | None) -> "Generator":
    """What a round's noise is drawn from: the same again where the round is closed again from the same.

    Else two models of the round could come to be known, whose noise together is less than was counted. Of other updates
    the noise is another: the same would be gone from the difference of the two.
    """
    from fedctl.dp.noise import Generator

    path = run.noise(opened.number)
    if not path.exists():
        write_atomically(path, secrets.token_bytes(32), mode=0o600)
    parts = sorted([name, one.update.digest] for name, one in opened.updates.items() if name in contributors)
    clip = digest(memory).digest if memory else ""  # it may be in there
    return Generator.of(path.read_bytes()).branch(json.dumps([parts, clip]))


def late(run: RunDir, number: int, rounds: Mapping[str, int], staleness: Staleness) -> "dict[str, Late]":
    """Which of a round's updates began from an earlier model, by node; `rounds` are those that asked for them."""
    from fedctl.aggregation import Late

    return {
        name: Late(base=run.round_model(asked - 1), share=staleness.share(number - asked))
        for name, asked in rounds.items()
        if asked < number
    }


def losses_of(state: RunState, number: int) -> dict[str, float]:
    """What each node's validation said of a round's model, where the run is judged by a loss: the less, the better."""
    scores = global_scores(state, number) if state.mode == "min" else {}
    return {name: score.metrics[state.metric] for name, score in scores.items() if state.metric in score.metrics}


def publish(run: RunDir, number: int, model_args: Mapping[str, Any], promise: Mapping[str, str]) -> None:
    """Make a round's model the run's `model.safetensors` and `model.ckpt`, with what is promised of it."""
    from fedctl.division import united
    from fedctl.weights import save, save_checkpoint

    whole = united(run.round_model(number), run.rest)
    if run.rest.exists():
        save(run.model, whole, promise)
    else:
        copy_atomically(run.round_model(number), run.model)
    save_checkpoint(run.checkpoint, whole, model_args, promise)
