"""The command line: a command is its signature, its help, one operation and one view of what came back.

Owns the only error boundary. Imports stand inside the commands, so that `--help` and `status` start without torch.
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedctl.errors import ConfigError, FedctlError, NodeError, RunError, StateError, UsageError
from fedctl.verbatim import Command, Group

if TYPE_CHECKING:
    from fedctl.rundir import RunDir

app = typer.Typer(
    name="fedctl",
    help="Federated learning over the SSH you already have: your Lightning code, unchanged, trained where the data is.",
    epilog="Begin with `fedctl init demo && cd demo && fedctl launch`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # rich's help costs three times the start of the whole program
    context_settings={"help_option_names": ["-h", "--help"]},
)

FileOption = Annotated[Path, typer.Option("--file", "-f", help="The federation's fed.yaml; its runs stand beside it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]
RunArgument = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="A run's name or folder; without it the latest.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Override a value of fed.yaml, as `rounds=5` or `nodes.bob.slots=2`."
    ),
]
FED_YAML = Path("fed.yaml")


def main() -> None:
    """Run the command line; shows an error once and ends with its exit code."""
    as_json = "--json" in sys.argv[1:]
    try:
        app()
    except FedctlError as error:
        from fedctl.views.show import error as show

        show(error, json=as_json)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        from fedctl.views.show import error as show

        where = f"{error.filename}: " if error.filename else ""
        show(StateError(f"{where}{error.strerror or error}", hint="make room there, or make it writable"), json=as_json)
        sys.exit(StateError.exit_code)


def _version(value: bool) -> None:
    if value:
        from fedctl import __version__

        typer.echo(f"fedctl {__version__}")
        raise typer.Exit


@app.callback(cls=Group)
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Federated learning over the SSH you already have."""


@app.command(cls=Command)
def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to put it; made if it is not there.")] = Path(),
    template: Annotated[
        str, typer.Option("--template", "-t", metavar="NAME", help="Which one; see --list.")
    ] = "digits",
    list_: Annotated[bool, typer.Option("--list", help="List the templates.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
    json: JsonOption = False,
) -> None:
    """Make a ready-to-run folder from a template.

    It holds fed.yaml, model.py, data.py and a README.md that says what to expect. Nothing is overwritten without
    --force.
    """
    from fedctl import scaffold
    from fedctl.views import results

    if list_:
        results.templates(scaffold.templates(), as_json=json)
    else:
        made = scaffold.scaffold(folder, template, force=force)
        results.scaffolded(made, missing=scaffold.missing_requirements(made), as_json=json)


@app.command(cls=Command)
def check(
    file: FileOption = FED_YAML,
    set_: SetOption = None,
    accept_new: Annotated[
        bool,
        typer.Option(
            "--accept-new", help="Show host keys that are unknown, and ask whether to trust them from now on."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --accept-new: trust them without being asked.")] = False,
    json: JsonOption = False,
) -> None:
    """See that every node and your code are ready; change nothing.

    Looks at the way to each node, its host key and login, at Python, packages, disk, memory, accelerator and clock, at
    the paths in its `data:` and at whether it can import your code; and builds your model once in a folder that is then
    removed. Each failure comes with its remedy.

    A host key that has changed is never accepted here; one that is new only with --accept-new, into the file
    known_hosts beside fed.yaml.
    """
    from fedctl.operations.check import check as operation
    from fedctl.views import checking

    if yes and not accept_new:
        raise UsageError("--yes answers what --accept-new asks", hint="add --accept-new, or leave --yes out")
    ask = partial(checking.ask, yes=yes) if accept_new else None
    checked = operation(file, set_ or (), told=checking.progressed, ask=ask)
    checking.checked(checked, as_json=json)
    if not checked.passed:
        raise typer.Exit(NodeError.exit_code if checked.code.passed else ConfigError.exit_code)


@app.command(cls=Command)
def provision(file: FileOption = FED_YAML, set_: SetOption = None, json: JsonOption = False) -> None:
    """Make the nodes ready: your code, and an environment with torch.

    Only what is missing is sent or made, on all nodes at once; `launch` does the same. A node with `python:` keeps that
    environment as it is. Elsewhere one is made with uv or pip, from requirements.txt beside fed.yaml, with the versions
    of torch and Lightning that are here.
    """
    from fedctl.operations.provision import provision as operation
    from fedctl.views import provisioning

    with provisioning.open_progress(json=json) as progress:
        done = operation(file, set_ or (), told=progress.told)
    provisioning.provisioned(done, as_json=json)
    if done.failed:
        raise typer.Exit(NodeError.exit_code)


@app.command(cls=Command)
def launch(
    file: FileOption = FED_YAML,
    run: Annotated[
        str | None, typer.Option("--run", metavar="NAME", help="The new run's name; else made from the time.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="RUN", help="Go on with this run (`latest` for the latest).")
    ] = None,
    set_: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    hold: Annotated[
        bool, typer.Option("--hold", help="Stop once each round's updates are in, for `aggregate --commit`.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Leave once it is going; it needs no terminal then.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Run a federation, with a live dashboard.

    In a pipe or in CI it prints a line an event instead.

    Ctrl-C leaves: the nodes finish what they are doing, and `fedctl launch --resume RUN` goes on from there. With
    --detach nothing needs to stay: the run goes on without this terminal, and `fedctl status --follow` watches it.
    """
    from fedctl.coordinator import raise_if_failed
    from fedctl.operations import detach as detached
    from fedctl.operations import launch as operation
    from fedctl.views import open_sink, results

    if dry_run:
        if detach:
            raise UsageError("--dry-run does nothing that could be detached", hint="leave one out")
        results.planned(operation.dry_run(file, set_ or ()), as_json=json)
        return
    if resume is not None:
        _only_without(resume="--resume", run=run, set_=set_)
    old = None if resume is None else _find(file, None if resume == "latest" else resume)
    if detach:
        going = detached.resume(old, hold=hold) if old else detached.launch(file, run, set_ or (), hold=hold)
        state = going.state
        results.detached(going, as_json=json)
    else:
        with open_sink(json=json) as sink:
            if old:
                state = operation.resume(old, hold=hold, sinks=[sink])
            else:
                state = operation.launch(file, run, set_ or (), hold=hold, sinks=[sink])
        results.launched(state, was_live=sink.is_live, as_json=json)
    if json and state.status == "failed":
        raise typer.Exit(RunError.exit_code)  # the document has said why
    raise_if_failed(state)


@app.command(cls=Command)
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

    found = _find(file, run)
    if follow and not json:
        results.followed(followed(found), words=found.log("coordinator"))
        return
    state, alive = operation(found)
    results.status(state, alive=alive, words=found.log("coordinator"), as_json=json)


@app.command(cls=Command)
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

    results.log(log(_find(file, run), node, follow=follow and not json), as_json=json)


@app.command(cls=Command)
def stop(run: RunArgument = None, file: FileOption = FED_YAML, json: JsonOption = False) -> None:
    """Stop a run: its coordinator, then its workers.

    Nothing is lost that had been gathered; `fedctl launch --resume RUN` takes it up again.
    """
    from fedctl.operations.runs import stop as operation
    from fedctl.views import results

    ended = operation(_find(file, run))
    results.ended(ended, as_json=json)
    if ended.failed:
        raise typer.Exit(NodeError.exit_code)


@app.command(cls=Command)
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
        ended = operation.clean_nodes(file, _find(file, run) if run else None, force=force)
    else:
        ended = operation.clean(_find(file, run))
    results.ended(ended, as_json=json)
    if ended.failed:
        raise typer.Exit(NodeError.exit_code)


@app.command(cls=Command)
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
        output=output,
        commit=commit,
        force=force,
    )
    results.aggregated(operation.aggregate(request), as_json=json)


def _find(file: Path, run: str | None) -> "RunDir":
    from fedctl.rundir import find

    return find(file.parent, run)


def _only_without(*, resume: str, **others: object) -> None:
    for name, value in others.items():
        if value:
            raise UsageError(
                f"{resume} goes on with a run as it is; --{name.strip('_')} belongs to a new one", hint="leave one out"
            )
