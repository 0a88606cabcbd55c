"""New code and packages against those that were approved before, in lines for the owner's eyes.

Nothing of it is hidden, and no terminal obeys it: control characters are shown escaped, and so are characters that
turn the direction of writing; long runs of spaces, which push what follows out of sight, are shown as their number.
"""

from __future__ import annotations

import difflib
import re
import tarfile
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional

import fedctl
from fedctl.node.owner.known import digest_of, known

OWN = "fedctl/"
MOST_LINES = 20_000
"""Of a longer file the differences are not looked for: it is shown whole."""

_RUN = re.compile(r"(?<=.\S)[ \t]{20,}(?=\S)|[ \t]{100,}(?=\S)")
"""What pushes the rest of a line out of sight; the first character of a line is that of its change."""


def files_of(source: Path) -> Dict[str, bytes]:
    """The files of a bundle, a tar or a folder, by their paths."""
    if source.is_dir():
        files = (path for path in sorted(source.rglob("*")) if path.is_file())
        return {path.relative_to(source).as_posix(): path.read_bytes() for path in files}
    found = {}
    with tarfile.open(source) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            if content:
                found[member.name] = content.read()
    return found


def strange_names(source: Path) -> Iterator[str]:
    """Members of a tar that no bundle has: links, devices, names that lead elsewhere, and two of one name."""
    try:
        with tarfile.open(source, "r:") as archive:
            seen = set()
            for member in archive:
                parts = member.name.split("/")
                is_file = member.isreg() and not member.issparse()
                if (
                    not is_file
                    or {"", ".", ".."} & set(parts)
                    or parts[0] not in ("fedctl", "project")
                    or member.name in seen
                ):
                    yield member.name
                seen.add(member.name)
    except (tarfile.TarError, OSError, ValueError) as error:
        yield str(error)


def code(new: Mapping[str, bytes], old: Mapping[str, bytes], *, since: Optional[str]) -> Iterator[str]:
    """Files that are new, changed or gone; of fedctl's own those that are not as in the fedctl that runs here."""
    if since:
        yield f"against {since[:12]}, which was approved before:"
    shipped = known()
    own = {name for name in new if name.startswith(OWN)}
    as_shipped = {name for name in own if shipped.get(name) == digest_of(new[name])}
    shown = 0
    for name in sorted({*new, *old} - as_shipped):
        if new.get(name) != old.get(name) and (name in new or not name.startswith(OWN)):
            yield from _file(name, new.get(name), old.get(name))
            shown += 1
    if not shown:
        yield "nothing of the project is new" if since else "the project has no files"
    if as_shipped:
        yield f"{len(as_shipped)} files of fedctl's own are as in fedctl {fedctl.__version__}, which runs here"
    others = len(own - as_shipped)
    if others:
        yield f"{others} files below {OWN} are not as in fedctl {fedctl.__version__}, which runs here: see above"


def packages(new: Mapping[str, Any], old: Optional[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of requirements and the wheels that are to be installed, and with which Python."""
    yield from _lines_of("packages", _listed(new), _listed(old) if old else None)


def _listed(needs: Mapping[str, Any]) -> str:
    wheels = [f"{name} {digest}" for name, digest in sorted(dict(needs.get("wheels") or {}).items())]
    return "\n".join([f"Python {needs.get('python')}", str(needs.get("requirements")).strip("\n"), *wheels, ""])


def _file(name: str, new: Optional[bytes], old: Optional[bytes]) -> Iterator[str]:
    shown = safe(name)
    if new is None:
        yield f"deleted: {shown}"
        return
    text, before = _text(new), None if old is None else _text(old)
    if text is None or (old is not None and before is None):
        change = "new" if old is None else "changed"
        yield f"{change}, not text: {shown}, {len(new)} bytes, SHA-256 {digest_of(new)}"
        return
    yield from _lines_of(shown, text, before)


def _lines_of(name: str, new: str, old: Optional[str]) -> Iterator[str]:
    lines, before = new.split("\n"), [] if old is None else old.split("\n")
    if old is None or max(len(lines), len(before)) > MOST_LINES:
        yield f"{'new' if old is None else 'changed'}: {name}, {len(lines)} lines"
        yield from _safe_lines("+" + line for line in lines)
        return
    yield from _safe_lines(difflib.unified_diff(before, lines, f"{name} (approved)", f"{name} (new)", lineterm=""))


def _text(content: bytes) -> Optional[str]:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _safe_lines(lines: Iterable[str]) -> List[str]:
    return [safe(line) for line in lines]


def safe(line: str) -> str:
    """A line that a terminal shows as it is; nothing in it is lost."""
    seen = _RUN.sub(lambda run: f" [{len(run[0])} spaces] ", line)
    return "".join(
        character if character.isprintable() or character == "\t" else character.encode("unicode_escape").decode()
        for character in seen
    )
