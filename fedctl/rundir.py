"""Every file name on the coordinator: a run is a folder under `runs/`.

Owns names, the `latest` link, and writes that are whole and on the disk; knows nothing of what the files mean. Who may
write is `lease`'s part.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fedctl import lease
from fedctl.durable import sync, write_atomically
from fedctl.errors import StateError, UsageError, suggestion
from fedctl.lease import Lease
from fedctl.records import TaskKey

SCHEMA = 3
RUNS = "runs"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class RunDir:
    """One run's folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def journal(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def configuration(self) -> Path:
        return self.path / "fed.yaml"

    @property
    def bundle(self) -> Path:
        return self.path / "bundle.tar"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def checkpoint(self) -> Path:
        return self.path / "model.ckpt"

    def round(self, number: int) -> Path:
        return self.path / "rounds" / f"{number:04d}"

    def round_model(self, number: int) -> Path:
        """The global model after that round; round 0 is the first model."""
        return self.round(number) / "model.safetensors"

    @property
    def rest(self) -> Path:
        """The first model's tensors that no node shares; not there where all are shared."""
        return self.round(0) / "rest.safetensors"

    def memory(self, number: int) -> Path:
        return self.round(number) / "memory.safetensors"

    def difference(self, number: int) -> Path:
        """That round's model as it travels to nodes that have the one before; not there where it travels whole."""
        return self.round(number) / "difference.safetensors"

    def aggregate(self, number: int) -> Path:
        """That round's model until its difference to the one before is made."""
        return self.round(number) / "aggregate.safetensors"

    def residual(self, number: int) -> Path:
        """What the models up to that round's failed to bring over of what was aggregated."""
        return self.round(number) / "residual.safetensors"

    def wire(self, task: TaskKey) -> Path:
        """Where an update comes to that is still to be decoded."""
        return self.round(task.round) / "wire" / f"{task.node}.safetensors"

    def update(self, number: int, node: str) -> Path:
        return self.round(number) / "updates" / f"{node}.safetensors"

    def said(self, number: int, step: str, node: str) -> Path:
        """What a node said to others in a step of a round with masked updates."""
        return self.round(number) / "secagg" / step / f"{node}.json"

    def terms(self, number: int, node: str) -> Path:
        """The digest of what a node of a round with masked updates was told, which should be as all others were."""
        return self.round(number) / "secagg" / "terms" / node

    def mean(self, number: int) -> Path:
        """The mean of a round's masked updates, as an update of its own."""
        return self.round(number) / "mean.safetensors"

    def noise(self, number: int) -> Path:
        """The key of the noise of a round's mean, from when the round is closed until that is in the journal."""
        return self.round(number) / "noise.key"

    def alone(self, node: str) -> Path:
        return self.path / "alone" / f"{node}.safetensors"

    def answer(self, task: TaskKey) -> Path:
        """Where the weights go that a task returns."""
        match task.kind:
            case "initialize":
                return self.round_model(0)
            case "alone":
                return self.alone(task.node)
            case _:
                return self.update(task.round, task.node)

    def log(self, node: str) -> Path:
        return self.path / "logs" / f"{node}.log"

    @property
    def _lease(self) -> Path:
        return self.path / "lock"

    def sync(self, path: Path) -> None:
        """Have a file of the run on the disk for good, and the names of the folders that it is in."""
        for part in (path, *path.parents):
            sync(part)
            if part == self.path:
                return

    def sync_alone(self) -> None:
        """The same for all models that nodes trained alone, which are not synced one by one as they come."""
        for path in self.path.glob("alone/*"):
            self.sync(path)

    def sweep(self) -> None:
        """Remove what a killed coordinator left half-written; only for the holder of the lock.

        An update of the newest round, or of a node alone, that came in part goes on from there.
        """
        growing = {max((self.path / "rounds").glob("*"), default=None), self.path / "alone"}
        for path in self.path.rglob("*"):
            if ".tmp-" in path.name or (path.name.endswith(".part") and growing.isdisjoint(path.parents)):
                path.unlink(missing_ok=True)

    def facts(self) -> dict[str, Any]:
        """What `run.json` says; raises StateError when it is missing, damaged or of another version."""
        try:
            facts: dict[str, Any] = json.loads((self.path / "run.json").read_text())
            schema = facts["schema"]
        except (OSError, ValueError, KeyError, TypeError):
            raise StateError(f"{self.path}/run.json is missing or damaged") from None
        if schema != SCHEMA:
            raise StateError(
                f"{self.path} was written by another version of fedctl (schema {schema}, this one reads {SCHEMA})",
                hint=f"use fedctl {facts.get('fedctl', 'of that version')}",
            )
        return facts

    def is_alive(self, *, surely: bool = False) -> bool:
        """True while a coordinator works on the run; see `lease.is_held` on those of other hosts."""
        return lease.is_held(self._lease, surely=surely)

    def owner(self) -> dict[str, Any]:
        """Who holds the run, or held it last."""
        return lease.owner(self._lease)

    @contextlib.contextmanager
    def lock(self, told: Callable[[str], None] = lambda _: None) -> Iterator[Lease]:
        """Hold the run; raises StateError, saying who holds it, when another process does."""
        with lease.hold(self._lease, self.name, told) as held:
            yield held


def create(folder: Path, name: str, *, configuration: str, bundle: bytes, facts: Mapping[str, Any]) -> RunDir:
    """Make a run's folder below `folder`/runs, whole or not at all; raises StateError when the name is taken."""
    check_name(name)
    path = folder / RUNS / name
    temporary = path.with_name(f".{name}.{os.getpid()}")
    try:
        temporary.parent.mkdir(exist_ok=True)
        temporary.mkdir(mode=0o700)  # the models and what nodes tell are its user's alone
        for part in ("logs", "rounds"):
            (temporary / part).mkdir()
        (temporary / "events.jsonl").touch()
        write_atomically(temporary / "fed.yaml", configuration.encode())
        write_atomically(temporary / "bundle.tar", bundle)
        digest = hashlib.sha256(bundle).hexdigest()
        head = {"schema": SCHEMA, "identity": secrets.token_hex(16), "bundle": digest, **facts}
        write_atomically(temporary / "run.json", json.dumps(head, indent=1).encode())
        if path.exists():
            raise StateError(
                f"run {name} exists already",
                hint=f"choose another name, go on with `fedctl launch --resume {name}`, or `fedctl clean {name}`",
            )
        temporary.rename(path)
    except OSError as error:
        raise StateError(f"cannot make the run's folder {path}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _point_latest(path)
    sync(path.parent)
    sync(folder)
    return RunDir(path)


def find(folder: Path, name: str | None) -> RunDir:
    """A run below `folder`, by name or path; the latest without one. Raises StateError when there is none."""
    runs = folder / RUNS
    if name is None:
        latest = runs / "latest"
        if not latest.exists():
            raise StateError(f"no run in {runs.absolute()}", hint="start one with `fedctl launch`")
        return RunDir(latest.resolve())
    path = runs / name if _NAME.fullmatch(name) else Path(name)
    if not (path / "run.json").exists():
        path = Path(name)
    if not (path / "run.json").exists():
        known = [run.name for run in every(folder)]
        there = f"there {'is' if len(known) == 1 else 'are'} {', '.join(known[-5:])}"
        more = f" and {len(known) - 5} more" if len(known) > 5 else ""
        hint = suggestion(name, known, f"{there}{more}") if known else "`fedctl launch`"
        raise StateError(f"no run {name} in {runs.absolute()}", hint=hint)
    return RunDir(path.resolve())


def every(folder: Path) -> list[RunDir]:
    """All runs below `folder`, by name."""
    paths = sorted((folder / RUNS).glob("*/"))
    return [RunDir(path) for path in paths if (path / "run.json").exists() and not path.is_symlink()]


def remove(run: RunDir) -> None:
    """Remove a run's folder; `latest` then means the newest of those that are left."""
    runs = run.path.parent
    shutil.rmtree(run.path)
    latest = runs / "latest"
    if latest.is_symlink() and not latest.exists():
        latest.unlink()
        left = [path for path in runs.iterdir() if (path / "run.json").exists()]
        if left:
            _point_latest(max(left, key=lambda path: path.stat().st_mtime))
    if not any(runs.iterdir()):
        runs.rmdir()


def check_name(name: str) -> None:
    """Raises UsageError for a name that cannot be a folder of ours."""
    if not _NAME.fullmatch(name) or ".." in name or name == "latest":
        raise UsageError(
            f"{name!r} cannot be the name of a run", hint="use up to 100 letters, digits, `-`, `_` and `.`"
        )


def new_name(federation: str, now: datetime, folder: Path) -> str:
    """`digits-20261121-235007`, in UTC; a second one within a second gets a number."""
    name = f"{federation}-{now:%Y%m%d-%H%M%S}"
    taken = {path.name for path in (folder / RUNS).glob(f"{name}*")}
    return next(n for i in range(1, 1000) if (n := name if i == 1 else f"{name}-{i}") not in taken)


def _point_latest(path: Path) -> None:
    temporary = path.with_name(f".latest.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(path.name)
    temporary.rename(path.with_name("latest"))
