"""The command line: a command is its signature, its help, one operation and one view of what came back.

Owns the only error boundary. Imports stand inside the commands, so that `--help` and `status` start without torch.
"""

import sys
from typing import Annotated

import typer

from fedctl.cli import launching, owner, runs
from fedctl.errors import FedctlError, StateError
from fedctl.verbatim import Command, Group

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


def main() -> None:
    """Run the command line; shows an error once and ends with its exit code."""
    as_json = "--json" in sys.argv[1:]
    try:
        app(prog_name="fedctl")
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


for command in (
    launching.init,
    launching.check,
    launching.provision,
    launching.launch,
    runs.status,
    runs.logs,
    runs.audit,
    runs.stop,
    runs.clean,
    runs.aggregate,
):
    app.command(cls=Command)(command)

_FORWARDED = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
app.command(cls=Command, context_settings=_FORWARDED, add_help_option=False)(owner.node)
