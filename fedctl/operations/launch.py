"""`fedctl launch`: a new run of a federation, or the continuation of one."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import fedctl
from fedctl import bundle, fleet, rundir, secure, topology
from fedctl.coordinator import Coordinator, Sink
from fedctl.environment import Environment, Given, environments
from fedctl.errors import ConfigError, FedctlError, StateError
from fedctl.federation import Federation
from fedctl.forecast import Forecast, forecast
from fedctl.heap import give_back_what_is_freed
from fedctl.host import Host, Work
from fedctl.hosts import Hosts
from fedctl.journal import read
from fedctl.lease import Superseded
from fedctl.operations.algorithm import affordable_algorithm, build_algorithm
from fedctl.operations.rehearsal import rehearse
from fedctl.records import Blob
from fedctl.rundir import RunDir
from fedctl.sinks import MetricsSink
from fedctl.spending import planned
from fedctl.state import RunState, fold
from fedctl.strategies import uses_controls


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a launch would do. Sizes are in bytes; `forecast` says what the lines would carry.

    `rest` is the part of the model that no node shares. `left_out` is what looks like code and does not travel for its
    name, with the number of files. `affordable` are as many rounds as the privacy budget allows, and `epsilon` what
    they will have spent (None: the rounds do not tell). `environments` are by node, of those that do not use the
    coordinator's own Python.
    """

    federation: Federation
    affordable: int
    cohort: int
    quorum: int
    model: Blob
    rest: Blob | None
    forecast: Forecast
    bundle_size: int
    bundle_files: int
    left_out: Mapping[str, int]
    environments: Mapping[str, Environment | Given] = field(default_factory=dict)
    epsilon: float | None = None


class Interrupted(FedctlError):
    """The coordinator was asked to leave; the nodes' work goes on."""

    exit_code = 130


def dry_run(path: Path, overrides: Sequence[str] = ()) -> DryRun:
    """What a launch would do; builds the first model in a folder of its own and leaves no trace."""
    algorithm = affordable_algorithm(topology.load(path, overrides), path, overrides)
    federation = algorithm.federation
    made = environments(federation)
    first = rehearse(federation, controls=uses_controls(algorithm.strategy))
    epsilon, rounds = planned(federation) or (None, federation.rounds)
    return DryRun(
        federation=federation,
        affordable=rounds,
        epsilon=epsilon,
        cohort=fleet.wanted(federation),
        quorum=secure.quorum(federation, fleet.wanted(federation)),
        model=first.model,
        rest=first.rest,
        forecast=forecast(replace(federation, rounds=rounds), first.sizes),
        bundle_size=len(bundle.pack(federation)),
        bundle_files=sum(1 for _ in bundle.project_files(federation.folder)),
        left_out=bundle.left_out(federation.folder),
        environments=made,
    )


def launch(
    path: Path,
    name: str | None = None,
    overrides: Sequence[str] = (),
    *,
    hold: bool = False,
    sinks: Sequence[Sink] = (),
) -> RunState:
    """Run a federation to its end in a new run. Code that cannot be used leaves no run behind."""
    federation, run = begin(path, name, overrides)
    with leaving_nothing(federation, run):
        return _coordinate(federation, run, hold=hold, sinks=sinks)


def resume(
    run: RunDir, *, hold: bool = False, sinks: Sequence[Sink] = (), told: Callable[[str], None] = lambda _: None
) -> RunState:
    """Go on with a run where its journal ends, with the code and the configuration that it was started with.

    `told` hears when a coordinator on another host has to be waited for, which may have died.
    """
    federation = configured(run)
    state = fold(read(run.journal))
    if state.status == "finished":
        raise StateError(f"run {run.name} has finished", hint=f"`fedctl status {run.name}` shows what came of it")
    return _coordinate(federation, run, hold=hold, sinks=sinks, told=told)


def begin(path: Path, name: str | None, overrides: Sequence[str]) -> tuple[Federation, RunDir]:
    """Make the folder of a new run, which has everything that its coordinator needs."""
    federation = topology.load(path, overrides)
    if name is not None:
        rundir.check_name(name)
    affordable_algorithm(federation, path, overrides)
    environments(federation)
    run = rundir.create(
        federation.folder,
        name or rundir.new_name(federation.name, datetime.now(UTC), federation.folder),
        configuration=path.read_text(encoding="utf-8"),
        bundle=bundle.pack(federation),
        facts={
            "fedctl": fedctl.__version__,
            "federation": federation.name,
            "seed": federation.seed,
            "folder": str(federation.folder),
            "overrides": list(overrides),
        },
    )
    return federation, run


@contextlib.contextmanager
def leaving_nothing(federation: Federation, run: RunDir) -> Iterator[None]:
    """Remove a new run, here and on its hosts, where its configuration or its code turns out to be of no use."""
    try:
        yield
    except ConfigError:
        with contextlib.suppress(FedctlError), contextlib.closing(Hosts(federation, work_of(federation, run))) as hosts:
            hosts.each(lambda host: host.remove([]))
        rundir.remove(run)
        raise


def configured(run: RunDir) -> Federation:
    """The federation of a run, as it was given."""
    facts = run.facts()
    return topology.parse(
        run.configuration.read_text(encoding="utf-8"),
        name=str(run.configuration),
        folder=Path(facts["folder"]),
        overrides=facts["overrides"],
    )


def work_of(federation: Federation, run: RunDir) -> Work:
    """What the run asks of its hosts."""
    facts = run.facts()
    return Work(
        run=run.name,
        identity=facts["identity"],
        bundle=Blob(digest=facts["bundle"], size=run.bundle.stat().st_size),
        bundle_path=run.bundle,
        preload=bundle.preload(federation),
        cwd=str(federation.folder),
    )


def _coordinate(
    federation: Federation,
    run: RunDir,
    *,
    hold: bool,
    sinks: Sequence[Sink],
    told: Callable[[str], None] = lambda _: None,
) -> RunState:
    """Run the coordinator. Its hosts' workers end with the run, and stay while it may be taken up."""
    algorithm = build_algorithm(federation)
    give_back_what_is_freed()
    hosts = Hosts(federation, replace(work_of(federation, run), environments=environments(federation)))
    goes_on = False
    with run.lock(told) as lease, MetricsSink(run.metrics) as metrics, _leaving_on_signals(run.name):
        try:
            state = Coordinator(
                federation=algorithm.federation,
                run=run,
                lease=lease,
                hosts=hosts,
                strategy=algorithm.strategy,
                ways=algorithm.ways,
                sinks=(metrics, *sinks),
                hold=hold,
            ).run()
            goes_on = state.status == "held"
        except (Interrupted, Superseded):
            goes_on = True
            raise
        except OSError as error:
            raise StateError(
                f"cannot write the run: {error.strerror}: {error.filename or run.path}",
                hint=f"make room, then `fedctl launch --resume {run.name}`",
            ) from error
        finally:
            if not goes_on:
                hosts.each(Host.stop)  # the folders stay there for `logs` until `clean`
            hosts.close()
    return state


@contextlib.contextmanager
def _leaving_on_signals(name: str) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into one error that names the command to resume; only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            raise Interrupted(f"run {name} was stopped", hint=f"`fedctl launch --resume {name}` takes it up again")
        raise Interrupted(
            f"left run {name}; what its nodes were doing goes on without this coordinator",
            hint=f"`fedctl launch --resume {name}` takes it up again, `fedctl stop {name}` ends it on the nodes",
        )

    previous: dict[int, Callable[[int, FrameType | None], object] | int | None] = {
        number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
