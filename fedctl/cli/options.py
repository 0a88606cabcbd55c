"""The options that several commands take."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedctl.rundir import RunDir

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


def find_run(file: Path, run: str | None) -> "RunDir":
    """The run of that name, or the latest."""
    from fedctl.rundir import find

    return find(file.parent, run)
