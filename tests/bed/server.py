"""One sshd with keys, a configuration, a log and homes of its own: a node, as a bed gives it."""

import getpass
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bed import keys, processes
from tests.bed.relay import Relay

SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/local/sbin"


def program(name: str) -> str:
    """Where a system program is; raises FileNotFoundError with the remedy."""
    found = shutil.which(name, path=SYSTEM_PATH)
    if found is None:
        raise FileNotFoundError(
            f"{name} is not installed; on Debian or Ubuntu: `apt-get install openssh-server iproute2`"
        )
    return found


class Server:
    """A node: what a client needs to reach it, and hands on its processes.

    `config` are lines of sshd_config that win over the bed's own. Sessions get `home` as HOME, and FEDCTL_HOME in it.
    `shell` starts the server: words that come before sshd's own.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        address: str,
        port: int,
        authorized: Path,
        key: Path,
        config: Sequence[str] = (),
        host_keys: Sequence[str] = ("ed25519",),
        environment: Mapping[str, str] | None = None,
        noise: str = "",
        shell: Sequence[str] = (),
    ) -> None:
        self.name, self.folder, self.address, self.port, self.key = name, folder, address, port, key
        self.listens = (address, port)
        self.user = getpass.getuser()
        self.home = folder / "home"
        self.fedctl_home = self.home / ".fedctl"
        self.relay: Relay | None = None
        folder.mkdir()
        self.host_keys = [keys.make_key(folder / f"host_{kind}", kind) for kind in host_keys]
        self.home.mkdir()
        if noise:
            for file in (".bashrc", ".zshenv"):
                (self.home / file).write_text(noise)
        self._shell = shell
        self._authorized = authorized
        self._environment = {"HOME": str(self.home), "FEDCTL_HOME": str(self.fedctl_home), **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self.configure(*config)

    @property
    def log(self) -> str:
        """What sshd wrote so far."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def mark(self) -> str:
        """In the environment of every process that a session started."""
        return f"FEDCTL_HOME={self.fedctl_home}"

    def known_hosts(self) -> str:
        """The lines of known_hosts that a client needs."""
        name = self.address if self.port == 22 else f"[{self.address}]:{self.port}"
        return "".join(f"{name} {keys.public(key)}\n" for key in self.host_keys)

    def configure(self, *lines: str) -> None:
        """Put these lines of sshd_config before the bed's own, which they win over; counts from the next start on."""
        address, port = self.listens
        config = [
            *lines,
            f"Port {port}",
            f"ListenAddress {address}",
            *(f"HostKey {key}" for key in self.host_keys),
            f"AuthorizedKeysFile {self._authorized}",
            "SetEnv " + " ".join(f'"{name}={value}"' for name, value in self._environment.items()),
            "StrictModes no",  # a test's folder lies in /tmp
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "PidFile none",
            "PrintMotd no",
            "LogLevel VERBOSE",
            "Subsystem sftp internal-sftp",
        ]
        (self.folder / "sshd_config").write_text("\n".join(config) + "\n")

    def start(self) -> None:
        """Start sshd and wait until it listens; raises RuntimeError with its log when it does not."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where no service of the system made it
        words = [*self._shell, program("sshd"), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        before = self._starts()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            processes.wait_until(lambda: self._starts() > before, "sshd does not listen")
        except (TimeoutError, ChildProcessError) as error:
            self.stop()
            raise RuntimeError(f"{self.name}: {error}\n{self.log}") from None

    def processes(self) -> list[int]:
        """sshd's and all that sessions started."""
        started = processes.marked(self.mark)
        if self._process is not None and self._process.poll() is None:
            started += [self._process.pid, *processes.descendants(self._process.pid)]
        return sorted({*started, *processes.descendants(*started)})

    def started(self) -> list[int]:
        """What sessions started and is alive, in its session or out of it."""
        return processes.marked(self.mark)

    def drop_sessions(self) -> None:
        """Kill sshd's side of every connection; the server goes on, and so does what left its session."""
        processes.kill(self._sessions())

    def stop_server(self) -> None:
        """The server and its connections die; what left its session lives on."""
        processes.kill([*self._sessions(), *self._listener()])
        if self._process is not None:
            self._process.wait(10)
            self._process = None

    def restart_server(self) -> None:
        self.stop_server()
        self.start()

    def stop(self) -> None:
        """Every process of the node dies."""
        if self._process is not None:
            processes.end(self.processes)
            self._process.wait(10)
            self._process = None

    def reboot(self) -> None:
        """Every process of the node dies, and a new server comes up; files stay."""
        self.stop()
        self.start()

    def _listener(self) -> list[int]:
        return [self._process.pid] if self._process is not None and self._process.poll() is None else []

    def _sessions(self) -> list[int]:
        below = processes.descendants(*self._listener())
        return [pid for pid in below if processes.name(pid).startswith("sshd")]  # from 9.8 on, sshd-session

    def _starts(self) -> int:
        """How often sshd said that it listens; raises ChildProcessError when it has ended instead."""
        if self._process is not None and self._process.poll() is not None:
            raise ChildProcessError("sshd ended at once")
        return self.log.count("Server listening on")
