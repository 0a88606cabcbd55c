"""The builder of one environment on a node: a process of its own, which outlives the line that asked for it.

Run by the agent as `python3 -I environment.py SPEC`, standard library only, for Python 3.8 or newer. An environment is
made in place, for it does not move; the file `ready` in it, renamed there last, is the only mark of a whole one. The
agent hands down a lock that this process, and whatever it starts, holds to the end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

LAST_LINES = 15
OFFLINE = (
    "no matching distribution",
    "could not find a version",
    "name resolution",
    "name or service not known",
    "network is unreachable",
    "failed to establish a new connection",
    "connection refused",
    "timed out",
    "dns error",
    "error sending request",
)


class Failed(Exception):
    """The environment cannot be made; says why, what helps, and what the installer said last."""

    def __init__(self, error: str, hint: str = "", detail: str = "") -> None:
        super().__init__(error)
        self.report = {"error": error, "hint": hint, "detail": detail}


class Builder:
    """Makes what a spec asks for; `base` is the environment's folder, and the stem of the files beside it."""

    def __init__(self, base: Path, spec: Dict[str, Any]) -> None:
        self.base = base
        self.spec = spec
        self.work = base.with_suffix(".work")
        self.env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        self.env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # several indices are taken as pip takes them
        self.env.update(
            TMPDIR=str(self.work / "tmp"),  # what an installer leaves when it is killed goes with the rest
            PYTHONUNBUFFERED="1",
            PIP_USER="0",
            PIP_NO_CACHE_DIR="1",
            PIP_DISABLE_PIP_VERSION_CHECK="1",
            UV_NO_CACHE="1",
            UV_PYTHON_INSTALL_DIR=str(base.with_name("python")),
        )

    def build(self) -> None:
        """Make the environment anew, from nothing; raises Failed."""
        began = time.monotonic()
        for left in (self.base, self.work):
            shutil.rmtree(left, ignore_errors=True)
        (self.work / "tmp").mkdir(parents=True)
        wheels = self.gather_wheels()
        self.make_folder()
        self.install(wheels)
        ready = {"seconds": time.monotonic() - began, **self.look()}
        shutil.rmtree(self.work, ignore_errors=True)
        write_whole(self.base / "ready", ready)

    def gather_wheels(self) -> Optional[Path]:
        """The wheels under their own names, which tell an installer what they are; None where none were sent."""
        if not self.spec["wheels"]:
            return None
        folder = self.work / "wheels"
        folder.mkdir()
        for name, blob in self.spec["wheels"].items():
            try:
                os.link(blob, folder / name)
            except OSError:  # a file system without hard links
                shutil.copyfile(blob, folder / name)
        return folder

    def make_folder(self) -> None:
        uv, python = self.spec["uv"], self.spec["python"]
        if uv:
            wanted = python or self.spec["version"]
            return self.run([uv, "venv", "--python", wanted, str(self.base)], f"uv could make no Python {wanted}")
        able = subprocess.run(
            [python, "-c", "import venv, ensurepip"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self.env,
            check=False,
        )
        if able.returncode:
            package = f"python{self.spec['version']}-venv"
            raise Failed(
                f"{python} has no venv",
                f"on Debian or Ubuntu `sudo apt install {package}` there; or install uv, or name a Python with torch "
                "in `python:`",
            )
        return self.run([python, "-m", "venv", str(self.base)], f"{python} could make no environment")

    def install(self, wheels: Optional[Path]) -> None:
        requirements = self.base / "requirements.txt"
        requirements.write_text(self.spec["requirements"], encoding="utf-8")
        python = str(self.base / "bin" / "python")
        if self.spec["uv"]:
            command = [self.spec["uv"], "pip", "install", "--python", python]
        else:
            command = [python, "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
        if wheels:
            command += ["--no-index", "--find-links", str(wheels)]
        self.run([*command, "-r", str(requirements)], "the packages could not be installed")

    def look(self) -> Dict[str, Any]:
        """What is there now, as the new environment's own Python says."""
        code = (
            "import json, sys\nfrom importlib.metadata import distributions\n"
            "found = {d.metadata['Name']: d.version for d in distributions()}\n"
            "print(json.dumps({'python': sys.version.split()[0], 'packages': found}))"
        )
        command = [str(self.base / "bin" / "python"), "-I", "-c", code]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=self.env, check=False)
        if done.returncode:
            raise Failed("the new environment's Python does not run", detail=self.last_lines())
        found: Dict[str, Any] = json.loads(done.stdout)
        return found

    def run(self, command: Sequence[str], error: str) -> None:
        """Run an installer; its words go where this process's go, the log. Raises Failed with the last of them."""
        done = subprocess.run(command, stdin=subprocess.DEVNULL, env=self.env, close_fds=False, check=False)
        if done.returncode:
            detail = self.last_lines()
            raise Failed(error, self.hint(detail.lower()), detail)

    def hint(self, said: str) -> str:
        if "no space left" in said or "disk quota exceeded" in said or "os error 28" in said:
            return f"make room below {self.base.parent}"
        if self.spec["wheels"]:
            return (
                "the folder of `wheelhouse:` lacks a wheel for this machine: fill it with `pip download`, on a machine "
                f"like it with Python {self.spec['version']}"
            )
        if any(sign in said for sign in OFFLINE):
            return (
                "does that package have this version for this machine? where the internet is out of reach, name a "
                "folder of wheels in `wheelhouse:`"
            )
        return "a line in requirements.txt beside fed.yaml goes before what fedctl would install"

    def last_lines(self) -> str:
        lines = self.base.with_suffix(".log").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([line for line in lines if line.strip()][-LAST_LINES:])


def write_whole(path: Path, value: Any) -> None:
    """Write a JSON file under another name and rename it into place, so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def main(arguments: List[str]) -> int:
    """Build what the spec asks for; where that fails, leave nothing but the reason."""
    path = Path(arguments[1])
    base = path.with_suffix("")
    builder = Builder(base, json.loads(path.read_text(encoding="utf-8")))
    try:
        builder.build()
    except (Failed, OSError) as error:
        report = (
            error.report if isinstance(error, Failed) else Failed(str(error), builder.hint(str(error).lower())).report
        )
        for left in (base, builder.work):
            shutil.rmtree(left, ignore_errors=True)
        write_whole(base.with_suffix(".failed"), report)
        return 1
    finally:
        for mark in base.parent.glob(f"{base.name}.asked-*"):  # they are answered
            mark.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
