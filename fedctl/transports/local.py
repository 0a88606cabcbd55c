"""`host: local`: a command of this machine, as a subprocess in a session of its own."""

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence

from fedctl.errors import NodeError

ERRORS_KEPT = 4000


class LocalProcess:
    """A subprocess; its stderr goes to an unnamed file, so that it can never fill a pipe that nobody reads."""

    def __init__(self, argv: Sequence[str], home: str | None) -> None:
        self._said: str | None = None
        self._ending = threading.Lock()
        self._reading = threading.Lock()
        self._closing = threading.Lock()
        self._stderr = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (closed with the process)
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,
                env={**os.environ, "FEDCTL_HOME": home} if home else None,
            )
        except OSError:
            self._stderr.close()
            raise

    def write(self, data: bytes) -> None:
        assert self._process.stdin
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def close_stdin(self) -> None:
        assert self._process.stdin
        with self._closing, contextlib.suppress(OSError):  # two threads that close a buffered file at once break it
            self._process.stdin.close()

    def read(self, size: int) -> bytes:
        stdout = self._process.stdout
        assert stdout
        with self._reading:
            data = b"" if stdout.closed else stdout.read(size)
            if len(data) < size:
                stdout.close()
        return data

    def errors(self) -> str:
        with self._ending:
            return self._tail() if self._said is None else self._said

    def wait(self) -> int:
        status = self._process.wait()
        with self._ending:
            if self._said is None:
                self._said = self._tail()
                self._stderr.close()
        return status

    def kill(self) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self.wait()
        self.close_stdin()
        if self._reading.acquire(blocking=False):  # else whoever reads now comes to the end and closes it
            assert self._process.stdout
            self._process.stdout.close()
            self._reading.release()

    def _tail(self) -> str:
        """Read without moving the file's position, which is the command's too."""
        descriptor = self._stderr.fileno()
        begin = max(0, os.fstat(descriptor).st_size - ERRORS_KEPT)
        return os.pread(descriptor, ERRORS_KEPT, begin).decode(errors="replace")


class LocalTransport:
    """This machine, as the user who runs the coordinator; `home` is where the node's files go, else ~/.fedctl."""

    def __init__(self, home: str | None = None) -> None:
        self._home = home

    def open(self, argv: Sequence[str]) -> LocalProcess:
        try:
            return LocalProcess(argv, self._home)
        except OSError as error:
            raise NodeError(f"cannot run {argv[0]}: {error.strerror}") from error
