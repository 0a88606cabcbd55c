"""A bed: nodes, and a client's home from which they are reached by name."""

import os
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from tests.bed import keys
from tests.bed.server import Server, program


class Bed:
    """Nodes by name. `home` is a HOME whose ~/.ssh knows them all; `key`, and what `admit` lets in, opens each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.home = self.folder / "client"
        self.config = self.home / ".ssh" / "config"
        self.known_hosts = self.home / ".ssh" / "known_hosts"
        self.config.parent.mkdir(parents=True, mode=0o700)
        self.key = keys.make_key(self.home / ".ssh" / "id_bed")
        self.authorized_keys = self.folder / "authorized_keys"
        self.authorized_keys.touch()
        self.admit(self.key)
        self.nodes: dict[str, Server] = {}
        self._aliases: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Nodes

    def add(self, name: str, **options: Any) -> Server:
        """Bring up a node, with the options of `Server`."""
        return self.add_all([name], **options)[0]

    def add_all(self, names: Iterable[str], **options: Any) -> list[Server]:
        """Bring up several at once."""
        names = list(names)
        with ThreadPoolExecutor(8) as pool:
            servers = list(pool.map(lambda name: self._bring_up(name, options), names))
        for server in servers:
            self._aliases[server.name] = {
                "HostName": server.address,
                "Port": server.port,
                "User": server.user,
                "IdentityFile": server.key,
                "IdentitiesOnly": "yes",
                "UserKnownHostsFile": self.known_hosts,  # the binary looks into the real home, whatever HOME is
                "StrictHostKeyChecking": "yes",
            }
        self.known_hosts.write_text("".join(server.known_hosts() for server in self.nodes.values()))
        self._write_config()
        return servers

    def alias(self, name: str, server: Server, **settings: Any) -> str:
        """Another name for a node in ~/.ssh/config, with these settings (None: without that one)."""
        merged = {**self._aliases[server.name], **settings}
        self._aliases[name] = {word: value for word, value in merged.items() if value is not None}
        self._write_config()
        return name

    def admit(self, key: Path) -> None:
        """Let the key into every node."""
        with self.authorized_keys.open("a") as file:
            file.write(f"{keys.public(key)}\n")

    def close(self) -> None:
        """Every node dies; their files stay for whoever asserts."""
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self._take_down, self.nodes.values()))

    # Lines

    def cut(self, server: Server) -> None:
        """Packets vanish; nothing is closed."""
        raise NotImplementedError

    def heal(self, server: Server) -> None:
        raise NotImplementedError

    def slow(self, server: Server, rate: float) -> None:
        """Bytes a second each way."""
        raise NotImplementedError

    # Use

    @property
    def environment(self) -> dict[str, str]:
        """Of a client: its HOME, and no agent but one that is asked for."""
        return {**os.environ, "HOME": str(self.home), "SSH_AUTH_SOCK": ""}

    def ssh(self, name: str, *command: str, seconds: float = 30, **settings: Any) -> subprocess.CompletedProcess[str]:
        """The real `ssh`, by this bed's configuration; never asks."""
        options = [f"-o{word}={value}" for word, value in {"BatchMode": "yes", **settings}.items()]
        words = [program("ssh"), "-F", str(self.config), *options, name, *command]
        return subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL
        )

    def fed_yaml_nodes(self, *names: str) -> str:
        """`nodes:` of a fed.yaml with those (else all) nodes, by name."""
        return "nodes:\n" + "".join(f"  - {{name: {name}, host: {name}}}\n" for name in names or self.nodes)

    # For kinds of beds

    def _make(self, name: str, options: dict[str, Any]) -> Server:
        """A server that is not started yet."""
        raise NotImplementedError

    def _take_down(self, server: Server) -> None:
        server.stop()

    def _bring_up(self, name: str, options: dict[str, Any]) -> Server:
        assert name not in self.nodes, f"{name} is there already"
        server = self._make(name, {"authorized": self.authorized_keys, "key": self.key, **options})
        self.nodes[name] = server
        server.start()
        return server

    def _write_config(self) -> None:
        blocks = (
            f"Host {name}\n" + "".join(f"  {word} {value}\n" for word, value in settings.items())
            for name, settings in self._aliases.items()
        )
        self.config.write_text("\n".join(blocks))
