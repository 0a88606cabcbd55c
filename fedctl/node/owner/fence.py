"""A fence around the files that training code may open, by Linux's Landlock: no administrator, and no way back.

It is a list of what is open: the system's programs and libraries, the Python that trains, the folders of fedctl's that
belong to the key, and the data. The fence holds for whatever the code starts, and keeps it from looking into, or
sending signals to, processes outside.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import Iterable, Iterator, List, NamedTuple, Sequence, Tuple

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION, PATH_BENEATH = 1, 1
NO_NEW_PRIVILEGES = 38  # of prctl
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
TRUNCATE, DEVICE = 1 << 14, 1 << 15
RIGHTS = (13, 14, 15, 15, 16)
"""How many rights there are, by Landlock's version from 1 on; each is a bit."""
READING = EXECUTE | READ_FILE | READ_DIR
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | DEVICE
SCOPED_SINCE = 6
ABSTRACT_SOCKETS, SIGNALS = 1, 2

SYSTEM = (
    *("/bin", "/etc", "/lib", "/lib32", "/lib64", "/nix/store", "/opt", "/proc", "/sbin", "/sys", "/usr"),
    *("/run/NetworkManager/resolv.conf", "/run/resolvconf", "/run/systemd/resolve", "/var/lib/ca-certificates"),
)
SCRATCH = ("/dev", "/tmp", "/var/tmp")  # noqa: S108  where programs expect to write; devices are the GPUs'
OF_A_PYTHON = ("bin", "lib", "lib64", "include", "share", "pyvenv.cfg", "conda-meta")


class Fence(NamedTuple):
    """Paths that stay open, with all that is below them, for reading and for writing too."""

    reading: Sequence[str]
    writing: Sequence[str]

    def close(self) -> None:
        """Hold this process, and all that it starts, to it; raises OSError where the system cannot."""
        import ctypes  # few workers are fenced in

        version = landlock()
        all_rights = (1 << RIGHTS[min(version, len(RIGHTS)) - 1]) - 1
        attributes = struct.pack("=QQQ", all_rights, 0, ABSTRACT_SOCKETS | SIGNALS)
        size = len(attributes) if version >= SCOPED_SINCE else 8
        ruleset = _call(CREATE_RULESET, ctypes.c_char_p(attributes), size, 0)
        try:
            for path, rights in self._rules(all_rights):
                try:
                    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
                except OSError:  # not every machine has each of them
                    continue
                try:
                    allowed = rights if stat.S_ISDIR(os.fstat(descriptor).st_mode) else rights & OF_A_FILE
                    rule = struct.pack("=Qi", allowed, descriptor)
                    _call(ADD_RULE, ruleset, PATH_BENEATH, ctypes.c_char_p(rule), 0)
                finally:
                    os.close(descriptor)
            if ctypes.CDLL(None, use_errno=True).prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "prctl")
            _call(RESTRICT_SELF, ruleset, 0)
        finally:
            os.close(ruleset)

    def _rules(self, all_rights: int) -> Iterator[Tuple[str, int]]:
        yield from ((path, READING & all_rights) for path in self.reading)
        yield from ((path, all_rights) for path in self.writing)


def around(python: str, home: Path, data: Iterable[str], *others: str) -> Fence:
    """The fence for a worker of that Python, whose key has the folder `home`; `others` are paths that it may read."""
    own = [*_of_python(python), str(home), *(str(Path(path).expanduser()) for path in (*data, *others))]
    return Fence(reading=[*SYSTEM, *own], writing=[*SCRATCH, str(home / "runs"), str(home / "blobs")])


def _of_python(python: str) -> List[str]:
    """The folders of a Python, and of the one that a virtual environment was made of; nothing beside them.

    A name in `~/.local/bin` tells nothing of where its Python is: `~/.local` has much else.
    """
    named, program = Path(python).parent.parent, Path(os.path.realpath(python))
    found = [named / part for part in OF_A_PYTHON if (named / "pyvenv.cfg").is_file()]
    if program.parent.parent in (Path.home(), Path.home() / ".local"):
        found += [program, *program.parent.parent.glob("lib/*python3*")]
    else:
        found += [program.parent.parent / part for part in OF_A_PYTHON]
    return sorted(map(str, found))


def landlock() -> int:
    """The version of Landlock, from 1; raises OSError where there is none, or it is switched off."""
    return _call(CREATE_RULESET, None, 0, VERSION)


def _call(number: int, *arguments: object) -> int:
    import ctypes

    system = getattr(ctypes.CDLL(None, use_errno=True), "syscall", None)
    result = (
        -1
        if system is None
        else int(system(*(ctypes.c_long(each) if isinstance(each, int) else each for each in (number, *arguments))))
    )
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
