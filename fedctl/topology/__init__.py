"""`fed.yaml` as a `Federation`: the only door to YAML and pydantic.

`load` takes a file, `parse` its text. Either gives a federation that is whole and checked, or raises a `ConfigError`
that says everything that is wrong with it: file, line, path and what was probably meant. `placed` says file and line
of what is found wrong later. `parse_value` reads one value.

    document    YAML text -> values and their places
    overrides   --set a.b=c -> values and their places
    schema      the keys of each section, of the kinds in `fields`
    expand      node entries -> nodes
    references  file.py:Class -> is it there?
    schedules   what of a schedule goes together
    problems    what is wrong -> one error, in the words of `wording`
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedctl.errors import ConfigError
from fedctl.federation import Callback, Federation, Finetune, Limits, Monitor, Schedule, TaskSpec
from fedctl.privacy import OPEN, AdaptiveClip, DifferentialPrivacy, Privacy, SecureAggregation
from fedctl.share import Share
from fedctl.topology.document import Address, Document, read
from fedctl.topology.expand import expand, node_problems
from fedctl.topology.fields import SET_BY_FEDCTL
from fedctl.topology.overrides import override
from fedctl.topology.problems import Problem, problems_of, refusal
from fedctl.topology.references import reference_problem
from fedctl.topology.schedules import schedule_problems
from fedctl.topology.schema import FederationSection, PrivacySection, TaskSection
from fedctl.topology.wording import describe

__all__ = ["load", "parse", "parse_value", "placed"]

_LARGEST_FILE = 1_000_000
_INIT = "`fedctl init` makes one, or name another with -f"


def load(path: Path, overrides: Sequence[str] = ()) -> Federation:
    """The federation of a file, with `a.b=c` assignments made in it first."""
    name = path.name or str(path)
    return parse(_text(path, name), name=name, folder=path.parent.absolute(), overrides=overrides)


def parse(text: str, *, name: str, folder: Path, overrides: Sequence[str] = ()) -> Federation:
    """The federation of a text; `name` stands for it in messages, `folder` has the user's code."""
    document = _overridden(text, name, overrides)
    try:
        section = FederationSection.model_validate(document.value)
    except ValidationError as error:
        raise refusal(list(problems_of(error, document)), document) from None
    if problems := list(_problems(section, folder, document)):
        raise refusal(problems, document)
    return _federation(section, folder)


@contextmanager
def placed(path: Path, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Where a ConfigError from within begins with an address, as in `codec/up: ...`, say in which line that stands."""
    try:
        yield
    except ConfigError as error:
        where, colon, text = error.message.partition(": ")
        address: Address = tuple(int(part) if part.isdecimal() else part for part in where.split("/"))
        if not colon or address[0] not in FederationSection.allowed():
            raise
        try:
            place = _overridden(_text(path, path.name), path.name, overrides).place(address)
        except ConfigError:  # it was changed since
            raise error from None
        raise ConfigError(place.sentence(address, text), hint=error.hint) from None


def parse_value(text: str, *, name: str) -> Any:
    """One value as fed.yaml would have it: a number, true, a text, a list; `name` stands for it in messages."""
    return read(text, name=name, lines=False).value


def _text(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file", hint=_INIT) from None
    except IsADirectoryError:
        raise ConfigError(f"{name}: is a folder", hint="name the file in it with -f") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a path"
        raise ConfigError(f"{name}: cannot be read: {why}", hint=_INIT) from None
    if len(data) > _LARGEST_FILE:
        raise ConfigError(f"{name}: larger than {_LARGEST_FILE} bytes", hint="is it the right file?")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}:{line}: not UTF-8 text", hint="save it as UTF-8, or name another") from None


def _overridden(text: str, name: str, overrides: Sequence[str]) -> Document:
    document = _document(text, name)
    for assignment in overrides:
        document = override(document, assignment)
    return document


def _document(text: str, name: str) -> Document:
    document = read(text, name=name)
    if document.value is None:
        raise ConfigError(f"{name}: the file is empty", hint=_INIT)
    if not isinstance(document.value, dict):
        text = f"{name}: should be a mapping at the top level, not {describe(document.value)}"
        raise ConfigError(text, hint="it begins with a line such as `name: digits`")
    return document


def _problems(section: FederationSection, folder: Path, document: Document) -> Iterator[Problem]:
    """What no single field can see."""
    yield from _task_problems(section.task, folder)
    nodes = list(node_problems(section.nodes, section.defaults, document))
    yield from nodes
    if section.compare and section.share and (section.share.only or section.share.kept):
        yield Problem(
            address=("compare",),
            text="would send what nodes train alone to all others, and `share` keeps parts of it at home",
            hint="leave one of the two out; personal models are scored beside the global one as it is",
        )
    if not nodes and section.schedule:
        yield from schedule_problems(section.schedule, section)


def _task_problems(task: TaskSection, folder: Path) -> Iterator[Problem]:
    references: dict[Address, str] = {("task", "model"): task.model, ("task", "data"): task.data}
    for index, callback in enumerate(task.callbacks or []):
        references["task", "callbacks", index, "class"] = callback.target
    for address, reference in references.items():
        if problem := reference_problem(reference, folder, address):
            yield problem
    for key in task.trainer or {}:
        if key in SET_BY_FEDCTL:
            yield Problem(address=("task", "trainer", key), text="fedctl sets this itself", hint=SET_BY_FEDCTL[key])
    monitor = task.monitor.given if task.monitor else {}
    if "mode" not in monitor and monitor.get("metric", Monitor().metric) != Monitor().metric:
        yield Problem(
            address=("task", "monitor", "mode"),
            text=f"missing for {monitor['metric']}",
            hint="add `mode: max` if more of it is better, `mode: min` if less is",
        )


def _federation(section: FederationSection, folder: Path) -> Federation:
    fields: dict[str, Any] = {
        **section.given,
        "folder": folder,
        "task": _task(section.task),
        "nodes": expand(section.nodes, section.defaults),
        "schedule": Schedule(**section.schedule.given) if section.schedule else Schedule(),
        "limits": Limits(**section.limits.given) if section.limits else Limits(),
        "share": Share(**section.share.given) if section.share else Share(),
        "privacy": _privacy(section.privacy),
        "finetune": Finetune(**section.finetune.given) if section.finetune else None,
    }
    fields.pop("defaults", None)
    return Federation(**fields)


def _privacy(section: PrivacySection | None) -> Privacy:
    if section is None:
        return OPEN
    fields = dict(section.given)
    if secure := section.secure_aggregation:
        fields["secure_aggregation"] = SecureAggregation(**secure.given)
    if dp := section.differential_privacy:
        adaptive = AdaptiveClip(**dp.adaptive.given) if dp.adaptive else None
        fields["differential_privacy"] = DifferentialPrivacy(**{**dp.given, "adaptive": adaptive})
    return Privacy(**fields)


def _task(section: TaskSection) -> TaskSpec:
    trainer = dict(section.trainer or {})
    if not {"max_epochs", "max_steps"} & trainer.keys():
        trainer["max_epochs"] = 1
    monitor = Monitor(**section.monitor.given) if section.monitor else Monitor()
    callbacks = tuple(Callback(**each.given) for each in section.callbacks or [])
    return TaskSpec(**{**section.given, "trainer": trainer, "monitor": monitor, "callbacks": callbacks})
