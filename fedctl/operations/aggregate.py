"""`fedctl aggregate`: a what-if over a run's updates, the next model of a held run, or the average of plain files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedctl import staleness
from fedctl.aggregation import AggregateReport, aggregate_files
from fedctl.division import due
from fedctl.durable import is_there
from fedctl.errors import RunError, StateError, UsageError
from fedctl.events import RoundAbandoned, UpdateReceived
from fedctl.federation import Named
from fedctl.journal import Journal, read
from fedctl.operations import combinations
from fedctl.operations.algorithm import build_algorithm, strategy_of, told_of_nodes
from fedctl.operations.launch import configured
from fedctl.operations.status import require_held
from fedctl.privacy import Privacy
from fedctl.records import Blob
from fedctl.rounds import close_round, late, losses_of
from fedctl.rundir import RunDir, find
from fedctl.state import RunState, fold
from fedctl.strategies import build, rule_of
from fedctl.takeup import damaged
from fedctl.topology import parse_value
from fedctl.weights import Weights

FILES = (".safetensors", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked for: `sources` name one run or several files; `folder` is where runs are looked for.

    `model` is the one that files were trained from, for the strategies that move it.
    """

    sources: tuple[str, ...] = ()
    folder: Path = Path()
    round: int | None = None
    strategy: str | None = None
    options: tuple[str, ...] = ()
    weights: str | None = None
    model: Path | None = None
    output: Path | None = None
    commit: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A held round that was closed by hand."""

    run: str
    round: int
    strategy: str
    model: Blob
    contributors: tuple[str, ...]


def aggregate(request: Request) -> AggregateReport | Committed:
    """Do what the request asks for; raises UsageError where it contradicts itself."""
    if any(Path(source).suffix in FILES for source in request.sources):
        return _files(request)
    if len(request.sources) > 1:
        raise UsageError("one run at a time, or files that end in .safetensors or .ckpt")
    if request.model:
        raise UsageError("--model belongs to files: a run knows where its updates began", hint="leave it out")
    run = find(request.folder, request.sources[0] if request.sources else None)
    return _commit(request, run) if request.commit else _what_if(request, run)


def _files(request: Request) -> AggregateReport:
    if request.commit or request.round is not None:
        raise UsageError("--commit and --round belong to a run, not to files")
    if request.output is None:
        raise UsageError("where should the result go?", hint="add `-o out.safetensors`")
    files = [Path(source) for source in request.sources]
    _refuse_masked(files)
    return aggregate_files(
        files,
        output=request.output,
        strategy=_strategy(request, Named(name="fedavg")),
        weights=_numbers(request.weights),
        model=request.model,
        force=request.force,
    )


def _refuse_masked(files: Sequence[Path]) -> None:
    """Raises UsageError for a masked update of a run: a strategy would take its whole numbers for weights."""
    from fedctl.masked import VECTOR

    for path in files:
        if path.suffix == ".safetensors" and path.is_file() and set(Weights.open(path)) == {VECTOR}:
            raise UsageError(
                f"{path} is a masked update, which tells nothing alone",
                hint="average models of rounds instead, such as `rounds/0003/model.safetensors` of two runs",
            )


def _refuse_what_is_promised(run: RunDir, privacy: Privacy) -> None:
    """Raises StateError where a what-if cannot be had of a run's updates, or would be without the noise on them."""
    commit = f"`fedctl aggregate {run.name} --commit` makes the model of a held round"
    if privacy.is_secure:
        raise StateError(
            f"the updates of run {run.name} are masked: all of a round together give their mean, and nothing else",
            hint=f"{commit}, with `--strategy` by another strategy over a mean",
        )
    if privacy.is_counted_by_node:
        raise StateError(f"a what-if over the updates of run {run.name} would be without its noise", hint=commit)


def _what_if(request: Request, run: RunDir) -> AggregateReport:
    """Aggregate a round's updates anew, beside the run; the weights are the nodes' examples unless given."""
    federation = configured(run)
    _refuse_what_is_promised(run, federation.privacy)
    state = fold(read(run.journal))
    number = request.round or (state.open.number if state.open and state.open.updates else state.round)
    rounds = _in_time(state, number)
    received = _received(run, rounds)
    names = [name for name, asked in rounds.items() if run.update(asked, name).exists()]
    if not names:
        raise StateError(f"run {run.name} has no updates of round {number}", hint=_rounds_with_updates(run))
    changed = [name for name in names if not is_there(run.update(rounds[name], name), received[name].update)]
    if changed:
        path = run.update(rounds[changed[0]], changed[0])
        raise StateError(
            f"{path} is not as {changed[0]} gave it: it was changed, or a power cut took it before it was written out",
            hint="aggregate the other files of its folder: `fedctl aggregate ALICE.safetensors ... -o out.safetensors`",
        )
    share = build_algorithm(federation).federation.share
    if not due(Weights.open(run.round_model(number - 1)), share, number):
        raise StateError(f"round {number} of run {run.name} shared no tensor", hint=_rounds_with_updates(run))
    own = strategy_of(federation)
    strategy = told_of_nodes(_strategy(request, own), federation)
    weights, losses = _numbers(request.weights), losses_of(state, number - 1)
    if weights is None and build(strategy, folder=federation.folder).weighted:
        examples = [received[name].examples for name in names]
        weights = [float(count) for count in examples] if any(examples) else None
    behind = late(run, number, rounds, staleness.build(federation.schedule.staleness))
    output = request.output or run.round(number) / f"what-if-{strategy.name.replace(':', '.')}.safetensors"
    report = aggregate_files(
        [run.update(rounds[name], name) for name in names],
        output=output,
        strategy=strategy,
        weights=weights,
        model=run.round_model(number - 1),
        memory=memory if (memory := run.memory(number - 1)).exists() and strategy == own else None,
        steps=[received[name].steps for name in names],
        losses=[losses.get(name) for name in names],
        late=[behind.get(name) for name in names],
        in_part=share.is_scheduled,
        rest=run.rest if run.rest.exists() and request.output else None,
        force=request.force or request.output is None,
    )
    contributors = tuple(replace(c, name=Path(c.name).stem) for c in report.contributors)
    return replace(report, contributors=contributors)


def _commit(request: Request, run: RunDir) -> Committed:
    """Close the held round: its updates become the run's next model."""
    if request.weights or request.output or request.round:
        raise UsageError("--commit takes the held round as it is", hint="leave out --weights, --round and -o")
    federation = configured(run)
    own = strategy_of(federation)
    strategy = told_of_nodes(_strategy(request, own), federation)
    rule = build(strategy, folder=federation.folder)
    own_algorithm = build_algorithm(federation)
    combinations.check(own_algorithm.federation, rule)
    kept = rule_of(own_algorithm.strategy)
    if rule_of(rule) and not kept:
        raise UsageError(
            f"{strategy.name} needs what its local rule does on the nodes, and this run has none",
            hint=f"a run with `strategy: {strategy.name}` has it",
        )
    if rule_of(rule) != kept:
        raise UsageError(
            f"nodes of this run keep what belongs to its own {own.name}: nothing else may close its rounds",
            hint=f"`fedctl aggregate {run.name} --strategy {strategy.name}` shows what it would give",
        )
    with run.lock() as lease, Journal(run.journal, lease.check) as journal:
        state = require_held(run)
        if lost := damaged(run, state):
            raise StateError(
                f"the update of {lost[0].node} is no longer on the disk as it came",
                hint=f"`fedctl launch --resume {run.name} --hold` asks {lost[0].node} for it again",
            )
        event = close_round(
            run,
            state,
            contributors=_contributors(state),
            strategy=rule,
            federation=own_algorithm.federation,
            down=own_algorithm.ways.down,
            staleness=staleness.build(federation.schedule.staleness),
            at=lambda: datetime.now(UTC),
            remembers=strategy.name == own.name,
        )
        journal.append([event])
        run.noise(event.round).unlink(missing_ok=True)
    if isinstance(event, RoundAbandoned):
        raise RunError(
            f"round {event.round} is abandoned, and the model is as it was: {event.reason}",
            hint=f"`fedctl launch --resume {run.name} --hold` goes on with the next round",
        )
    return Committed(
        run=run.name, round=event.round, strategy=strategy.name, model=event.model, contributors=event.contributors
    )


def _in_time(state: RunState, number: int) -> Mapping[str, int]:
    """The nodes whose updates count for a round, and the rounds that asked for these.

    One that came after its end lies there too, and does not count.
    """
    if state.open and state.open.number == number:
        return {name: update.key.round for name, update in state.open.updates.items()}
    report = next((report for report in state.history if report.number == number), None)
    return {name: number - report.staleness.get(name, 0) for name in sorted(report.contributors)} if report else {}


def _contributors(state: RunState) -> tuple[str, ...]:
    """Those that the round's model is of; masks come off the sum of all that its steps agreed on, and of no others."""
    if state.open is None:
        return ()
    return state.open.steps["train"] if state.open.secure else state.open.first


def _received(run: RunDir, rounds: Mapping[str, int]) -> Mapping[str, UpdateReceived]:
    """What each node gave when it was asked in that round, by the journal."""
    return {
        event.task.node: event
        for event in read(run.journal)
        if isinstance(event, UpdateReceived)
        and event.task.kind == "train"
        and event.task.round == rounds.get(event.task.node)
    }


def _rounds_with_updates(run: RunDir) -> str:
    rounds = sorted(int(path.parent.name) for path in run.path.glob("rounds/*/updates"))
    return f"there are updates of rounds {rounds[0]} to {rounds[-1]}" if rounds else "no round has gathered any yet"


def _strategy(request: Request, default: Named) -> Named:
    options = _options(request.options)
    if request.strategy is None or request.strategy == default.name:
        return Named(name=default.name, options={**default.options, **options})
    return Named(name=request.strategy, options=options)


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise UsageError(f"--option {pair}: should be name=value", hint="as `--option momentum=0.9`")
        options[name] = parse_value(value, name=f"--option {name}")
    return options


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--weights {text}: should be numbers", hint="as `--weights 3,1,1`") from None
