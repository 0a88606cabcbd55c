"""`host: local`: a command of this machine, as a subprocess in a session of its own."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Sequence

from fedctl.errors import NodeError

ERRORS_KEPT = 4000


class LocalProcess:
    """A subprocess; its stderr goes to an unnamed file, so that it can never fill a pipe that nobody reads."""

    def __init__(self, argv: Sequence[str], home: str | None) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, start_new_session=True,
            env={**os.environ, "FEDCTL_HOME": home} if home else None,
        )

    def write(self, data: bytes) -> None:
        assert self._process.stdin
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def close_stdin(self) -> None:
        assert self._process.stdin
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def read(self, size: int) -> bytes:
        assert self._process.stdout
        return self._process.stdout.read(size)

    def errors(self) -> str:
        self._stderr.seek(0, 2)
        self._stderr.seek(max(0, self._stderr.tell() - ERRORS_KEPT))
        return self._stderr.read().decode(errors="replace")

    def wait(self) -> int:
        return self._process.wait()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.close_stdin()


class LocalTransport:
    """This machine, as the user who runs the coordinator; `home` is another place than ~/.fedctl for the node's files."""

    def __init__(self, home: str | None = None) -> None:
        self._home = home

    def open(self, argv: Sequence[str]) -> LocalProcess:
        try:
            return LocalProcess(argv, self._home)
        except OSError as error:
            raise NodeError(f"cannot run {argv[0]}: {error.strerror}") from error
