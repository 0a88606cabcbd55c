"""One task on a node, from `task.json` to `result.json`.

The task's folder is locked while it is worked on; its output goes to `train.log`; `result.json` is written last, by
rename, and is the only mark of "finished". Every failure of the user's code becomes a result too.
"""

import contextlib
import fcntl
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from fedctl.errors import ConfigError, Declined
from fedctl.node.agent import Blobs, Run, key_of, parse, remove, write_whole
from fedctl.node.trainers import TRAINERS, resolve
from fedctl.records import DIFFERENCE, NEWEST, REST, Progress, Result, Task, TaskKey

PROGRESS_S = 0.2
PROGRAMMING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What a second attempt would raise again."""


class Reporter:
    """Appends to `progress.jsonl`, at most every `PROGRESS_S` seconds within a phase, while the disk takes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.phase = ""
        self.at = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.phase == self.phase and now - self.at < PROGRESS_S:
            return
        self.phase, self.at = progress.phase, now
        with contextlib.suppress(OSError), self.path.open("a") as file:
            file.write(json.dumps(progress.to_json()) + "\n")


def perform(folder: Path, *, threads: int) -> None:
    """Do the task in that folder unless it was begun before; `threads` is for torch where the task does not say.

    Where what it needs is not whole it counts as not begun. Raises OSError where the disk takes not even a failure.
    """
    run, key = Run(folder.parent), key_of(folder.name)
    with (folder / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "pid").exists() or (folder / "result.json").exists():
            run.unqueue(key)
            return
        try:
            write_whole(folder / "pid", str(os.getpid()).encode(), durable=False)
            run.unqueue(key)
            with _output_to(folder / "train.log"):
                result = _result_of(folder, TaskKey.parse(key), threads)
            if result is None:
                remove(folder / "pid")
            else:
                run.finish(key, result.to_json())
        except OSError as error:
            try:
                run.give_up(key, explain(error), retryable=True)
            except OSError:
                run.unqueue(key)  # nothing can be written down here: the agent tells it over its line


def _result_of(folder: Path, key: TaskKey, threads: int) -> Result | None:
    """What came of the task; None where it, a model of it or the code is not whole here, so that it comes again."""
    blobs = Blobs(folder.parent.parent.parent / "blobs")
    try:
        try:
            content = parse((folder / "task.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        task = Task.from_json(content)
        made = {REST, DIFFERENCE, *(NEWEST if DIFFERENCE in task.models else ())}
        are_whole = [blobs.verify(blob.digest) for label, blob in task.models.items() if label not in made]
        if not all(are_whole) or not all(Path(place).exists() for place in (__file__, sys.prefix)):
            return None
        if not made.isdisjoint(task.models) and not _are_made(task, blobs):
            return None
        models = {label: blobs.path(blob.digest) for label, blob in task.models.items()}
        trainer = resolve(TRAINERS["lightning"])
        return trainer(task, models, folder, Reporter(folder / "progress.jsonl"), task.threads or threads)
    except Declined as no:
        return Result(key=key, error=no.message, ask_again_s=no.seconds)
    except (KeyboardInterrupt, SystemExit, Exception) as error:  # whatever the user's code does, it is a result
        detail = users_part(error)
        with contextlib.suppress(OSError):
            sys.stderr.write(detail + "\n")
        return Result(
            key=key,
            error=explain(error),
            detail=detail[-8000:],
            retryable=not isinstance(error, (ConfigError, *PROGRAMMING_ERRORS)),
        )


def _are_made(task: Task, blobs: Blobs) -> bool:
    """Whether what is made of other things on this machine is here by now."""
    from fedctl.node.trainers import parts  # torch is slow to import, where the worker has not done so

    return (DIFFERENCE not in task.models or parts.is_model_here(task, blobs)) and parts.is_rest_here(task, blobs)


def users_part(error: BaseException) -> str:
    """The traceback from the user's first line on; the whole of it where no line is the user's."""
    project = sys.path[0]
    trace = traceback.TracebackException.from_exception(error)
    for i, frame in enumerate(trace.stack):
        if frame.filename.startswith(project + os.sep):
            trace.stack = traceback.StackSummary.from_list(list(trace.stack)[i:])
            break
    return "".join(trace.format()).replace(project + os.sep, "").rstrip()


def explain(error: BaseException) -> str:
    """One line: where in the user's code it happened, and what."""
    if isinstance(error, ConfigError):
        return f"{error.message}; {error.hint}" if error.hint else error.message
    project = sys.path[0]
    text = f"{type(error).__name__}: {error}".strip().removesuffix(":")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:500]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_inside(error.filename, project)}:{error.lineno}: {line}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(project + os.sep):
            return f"{_inside(frame.filename, project)}:{frame.lineno}: {line}"
    return line


def _inside(filename: str, project: str) -> str:
    return os.path.relpath(filename, project) if filename.startswith(project) else filename


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send stdout and stderr, of C code and of subprocesses too, to a file for a while."""
    saved = [os.dup(1), os.dup(2)]
    with path.open("ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        for descriptor, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
