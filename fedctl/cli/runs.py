"""`fedctl status`, `logs`, `audit`, `stop`, `clean` and `aggregate`: what one does with a run."""

from pathlib import Path
from typing import Annotated

import typer

from fedctl.cli.options import FED_YAML, FileOption, JsonOption, RunArgument, find_run
from fedctl.errors import ModelError, NodeError, UsageError


def status(
    run: RunArgument = None,
    follow: Annotated[bool, typer.Option("--follow", "-F", help="Stay, and draw it as it goes on.")] = False,
    file: FileOption = FED_YAML,
    json: JsonOption = False,
) -> None:
    """Show where a run stands: during it, after it, after a crash.

    Reads the run's journal alone, so it works from any terminal and disturbs nothing.
    """
    from fedctl.operations.status import follow as followed
    from fedctl.operations.status import status as operation
    from fedctl.views import results

    found = find_run(file, run)
    if follow and not json:
        results.followed(followed(found), words=found.log("coordinator"))
        return
    state, alive = operation(found)
    results.status(state, alive=alive, words=found.log("coordinator"), as_json=json)


def logs(
    node: Annotated[str, typer.Argument(help="The node's name.")],
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="Which run; without it the latest.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-F", help="Stay, and print what comes.")] = False,
    file: FileOption = FED_YAML,
    json: JsonOption = False,
) -> None:
    """Print a node's training log.

    That is what your code and Lightning printed there, and the traceback where it failed; the newest task's by default.
    """
    from fedctl.operations.runs import log
    from fedctl.views import results

    results.log(log(find_run(file, run), node, follow=follow and not json), as_json=json)


def audit(
    run: RunArgument = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Bring whole ledgers here and compute every hash again.")
    ] = False,
    file: FileOption = FED_YAML,
    json: JsonOption = False,
) -> None:
    """Compare what arrived with what left, by its nodes' ledgers.

    Each node writes down what leaves it before it leaves, in a chain of hashes, and the journal keeps the hash of every
    result's entry. So an update that is in one and not in the other is found, and a ledger that was changed since.

    Exit code 0: all agree. 6: something does not. 4: a node could not be asked.
    """
    from fedctl.operations.audit import audit as operation
    from fedctl.views.auditing import audited

    found = operation(find_run(file, run), verify=verify)
    audited(found, as_json=json)
    states = {one.state for one in found.nodes}
    if "differs" in states:
        raise typer.Exit(ModelError.exit_code)
    if "unreachable" in states:
        raise typer.Exit(NodeError.exit_code)


def stop(run: RunArgument = None, file: FileOption = FED_YAML, json: JsonOption = False) -> None:
    """Stop a run: its coordinator, then its workers.

    Nothing is lost that had been gathered; `fedctl launch --resume RUN` takes it up again.
    """
    from fedctl.operations.runs import stop as operation
    from fedctl.views import results

    ended = operation(find_run(file, run))
    results.ended(ended, as_json=json)
    if ended.failed:
        raise typer.Exit(NodeError.exit_code)


def clean(
    run: RunArgument = None,
    nodes: Annotated[bool, typer.Option("--nodes", help="Remove all of fedctl from the nodes, of every run.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --nodes: also where others' runs are at work.")] = False,
    file: FileOption = FED_YAML,
    json: JsonOption = False,
) -> None:
    """Remove what a run left, here and on its nodes.

    Its models go with it: copy what you want to keep.

    With --nodes no process and no file of fedctl is left on the nodes of fed.yaml: no run's, no environment, no agent.
    The runs here stay, but for RUN where it is given.
    """
    from fedctl.operations import runs as operation
    from fedctl.views import results

    if force and not nodes:
        raise UsageError("--force is about --nodes", hint="`fedctl stop RUN`, then `fedctl clean RUN`")
    if nodes:
        ended = operation.clean_nodes(file, find_run(file, run) if run else None, force=force)
    else:
        ended = operation.clean(find_run(file, run))
    results.ended(ended, as_json=json)
    if ended.failed:
        raise typer.Exit(NodeError.exit_code)


def aggregate(
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN or FILES...]", help="A run, or .safetensors and .ckpt files.")
    ] = None,
    round: Annotated[
        int | None, typer.Option("--round", min=1, help="Which round of the run; else its newest.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", metavar="NAME", help="How; else the run's own, or fedavg.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="K=V", help="An option of the strategy.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="A,B,...", help="A weight a file; else all equal.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FILE", help="What FILES were trained from; some strategies move it."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="Where to write: .safetensors or .ckpt.")
    ] = None,
    commit: Annotated[bool, typer.Option("--commit", help="Make it the next model of a run that is held.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
    file: FileOption = FED_YAML,
    json: JsonOption = False,
) -> None:
    """Average a run's updates, or any files of weights.

    Over a run it is a what-if beside it, with any strategy, until `--commit` makes it the next model of a run that
    `launch --hold` left waiting. Over files no run is needed.
    """
    from fedctl.operations import aggregate as operation
    from fedctl.views import results

    request = operation.Request(
        sources=tuple(sources or ()),
        folder=file.parent,
        round=round,
        strategy=strategy,
        options=tuple(option or ()),
        weights=weights,
        model=model,
        output=output,
        commit=commit,
        force=force,
    )
    results.aggregated(operation.aggregate(request), as_json=json)
