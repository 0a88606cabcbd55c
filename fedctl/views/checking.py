"""What `fedctl check` shows: how far it is, a line a node with a word for each group of findings, and every remedy."""

import dataclasses
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from fedctl.errors import UsageError
from fedctl.views.show import note, show_json, show_rows
from fedctl.views.text import counted, plain

if TYPE_CHECKING:
    from fedctl.operations.accepting import Unknown
    from fedctl.operations.check import Checked
    from fedctl.operations.findings import Finding

GROUPS: Mapping[str, tuple[str, ...]] = {
    "REACH": ("reach", "name", "network", "host key", "login", "agent", "forced command", "owner", "when"),
    "PYTHON": ("python", "packages"),
    "DISK": ("disk",),
    "MEMORY": ("memory",),
    "DEVICE": ("accelerator",),
    "CLOCK": ("clock",),
    "DATA": ("data",),
    "CODE": ("approval", "import"),
}
"""A column each, and the findings that it sums up."""
MOST_LINES = 24
"""With more nodes than this, those of which the same may be said share a line."""
MOST_NAMES = 3
LEAST_WIDTH = 72
"""On a narrower terminal a line names only what failed."""

Item = TypeVar("Item")
Said = TypeVar("Said")


def progressed(done: int, every: int) -> None:
    """How far the check is, on a terminal, in one line that vanishes at the end."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[Kchecked {done} of {every}" if done < every else "\r\x1b[K")
        sys.stderr.flush()


def checked(found: "Checked", *, as_json: bool) -> None:
    """A line a node, and below it each failure with its remedy."""
    if as_json:
        show_json({**dataclasses.asdict(found), "passed": found.passed})
        return
    _table({name: tuple(_cell(one, names) for names in GROUPS.values()) for name, one in found.nodes.items()})
    if found.code.passed:
        note(f"your code {found.code.value}")
    else:
        note(f"your code: {plain(found.code.value)}\n  {plain(found.code.remedy)}")
    failures = [(name, one) for name, one in _each(found) if not one.passed]
    for (what, remedy), alike in _alike(((name, one), (one.name, one.remedy)) for name, one in failures):
        for value, names in _alike((name, one.value) for name, one in alike):
            note(f"{_named(names)}: {what}: {plain(value)}")
        note(f"  {plain(remedy)}")
    for said, names in _alike((name, one.note) for name, one in _each(found) if one.passed and one.note):
        note(f"{_named(names)}: {said}")
    failed = sum(1 for findings in found.nodes.values() if not all(one.passed for one in findings))
    every = len(found.nodes)
    said = f"{failed} of {counted(every, 'node')} cannot train yet" if failed else f"{counted(every, 'node')} ready"
    declined = sum(any(one.name == "when" and one.note for one in findings) for findings in found.nodes.values())
    if declined and not failed:
        said += f", {declined} of them not to be used now"
    note(said if found.code.passed else f"{said}; your code cannot be used yet")


def ask(unknown: Sequence["Unknown"], *, yes: bool) -> bool:
    """Show the keys that nobody vouches for yet, and ask whether they are right; `yes` has answered already.

    Raises UsageError where there is nobody to ask.
    """
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")  # the progress line
    for one in unknown:
        note(f"{_named(one.nodes)}: {one.key.name} shows {one.key.type}\n  {one.key.fingerprint}")
    note(
        "compare each with what its owner reads out there: `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` "
        "(or the file of its kind)"
    )
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(
            "there is no terminal to ask on, and nothing was accepted",
            hint="once you have compared them, `fedctl check --accept-new --yes` accepts these keys",
        )
    sys.stderr.write(f"accept {'this key' if len(unknown) == 1 else f'these {len(unknown)} keys'}? [y/N] ")
    sys.stderr.flush()
    is_accepted = sys.stdin.readline().strip().lower() in ("y", "yes")
    note("kept in known_hosts beside fed.yaml" if is_accepted else "nothing was accepted")
    return is_accepted


def _table(lines: Mapping[str, tuple[str, ...]]) -> None:
    rows = list(lines.items())
    if len(rows) > MOST_LINES:
        rows = [(_named(names), cells) for cells, names in _alike(rows)]
    if shutil.get_terminal_size().columns >= LEAST_WIDTH:
        show_rows(["NODE", *GROUPS], [[name, *cells] for name, cells in rows], wrapped=0)
        return
    show_rows(["NODE", ""], [[name, _failed(cells)] for name, cells in rows], wrapped=0)


def _failed(cells: Iterable[str]) -> str:
    groups = [group.lower() for group, cell in zip(GROUPS, cells, strict=True) if cell == "failed"]
    return f"failed: {', '.join(groups)}" if groups else "ok"


def _cell(findings: Iterable["Finding"], names: tuple[str, ...]) -> str:
    """A group in a word: that it failed, or what its first finding found; nothing where it was not come to."""
    group = [one for one in findings if one.name in names]
    if not all(one.passed for one in group):
        return "failed"
    return group[0].mark if group else ""


def _each(found: "Checked") -> Iterable[tuple[str, "Finding"]]:
    for name, findings in found.nodes.items():
        yield from ((name, one) for one in findings)


def _alike(pairs: Iterable[tuple[Item, Said]]) -> Iterable[tuple[Said, list[Item]]]:
    """Those of which the same is said, together, in the order of the first ones."""
    groups: dict[Said, list[Item]] = {}
    for item, said in pairs:
        groups.setdefault(said, []).append(item)
    return groups.items()


def _named(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= MOST_NAMES else f"{names[0]} and {len(names) - 1} more"
