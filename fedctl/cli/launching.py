"""`fedctl init`, `check`, `provision` and `launch`: from nothing to a run."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fedctl.cli.options import FED_YAML, FileOption, JsonOption, SetOption, find_run
from fedctl.errors import ConfigError, NodeError, RunError, UsageError


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
    from fedctl.views.show import note

    if dry_run:
        if detach:
            raise UsageError("--dry-run does nothing that could be detached", hint="leave one out")
        results.planned(operation.dry_run(file, set_ or ()), as_json=json)
        return
    if resume is not None:
        _only_without(resume="--resume", run=run, set_=set_)
    old = None if resume is None else find_run(file, None if resume == "latest" else resume)
    if detach:
        going = detached.resume(old, hold=hold) if old else detached.launch(file, run, set_ or (), hold=hold)
        state = going.state
        results.detached(going, as_json=json)
    else:
        with open_sink(json=json) as sink:
            if old:
                state = operation.resume(old, hold=hold, sinks=[sink], told=note)
            else:
                state = operation.launch(file, run, set_ or (), hold=hold, sinks=[sink])
        results.launched(state, was_live=sink.is_live, as_json=json)
    if json and state.status == "failed":
        raise typer.Exit(RunError.exit_code)  # the document has said why
    raise_if_failed(state)


def _only_without(*, resume: str, **others: object) -> None:
    for name, value in others.items():
        if value:
            raise UsageError(
                f"{resume} goes on with a run as it is; --{name.strip('_')} belongs to a new one", hint="leave one out"
            )
