"""What each command shows of what its operation returned: words for people, or one JSON document."""

import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedctl.events import UNNEEDED, Event
from fedctl.federation import Codecs, Named
from fedctl.records import Progress
from fedctl.report import report
from fedctl.state import RunState
from fedctl.telemetry import Preparing, Telemetry
from fedctl.views import open_sink
from fedctl.views.forecasting import forecast_pairs
from fedctl.views.promised import promises
from fedctl.views.show import note, show_json, show_pairs, show_rows, show_status, show_summary
from fedctl.views.text import counted, files, listed, printable, size

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from fedctl.aggregation import AggregateReport
    from fedctl.operations.aggregate import Committed
    from fedctl.operations.detach import Detached
    from fedctl.operations.launch import DryRun
    from fedctl.operations.runs import Ended
    from fedctl.scaffold import Scaffolded, Template


def templates(found: Sequence["Template"], *, as_json: bool) -> None:
    """What `init` can make."""
    if as_json:
        show_json({"templates": [{"name": one.name, "summary": one.summary} for one in found]})
    else:
        show_rows(["TEMPLATE", "WHAT IT IS"], [[one.name, one.summary] for one in found])


def scaffolded(made: "Scaffolded", *, missing: Sequence[str], as_json: bool) -> None:
    """What `init` has made; `missing` are packages of its requirements.txt that are not here."""
    if as_json:
        show_json(_plain_value(made))
        return
    note(f"made {', '.join(str(path) for path in made.files)} in {made.folder}, from the template {made.template}")
    steps = [] if made.folder.resolve() == Path.cwd() else [f"cd {made.folder}"]
    if missing:
        steps.append("pip install -r requirements.txt")
    note(f"next: {' && '.join([*steps, 'fedctl launch'])}")


def planned(plan: "DryRun", *, as_json: bool) -> None:
    """What a launch would do."""
    federation, tuned = plan.federation, plan.federation.finetune
    if as_json:
        document = _plain_value(plan)
        document["federation"] = federation.name
        document["nodes"] = [{"name": node.name, "host": node.host} for node in federation.nodes]
        document["rounds"] = federation.rounds
        show_json(document)
        return
    names = [node.name for node in federation.nodes]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    show_pairs(
        [
            ("nodes", f"{len(names)}: {shown}"),
            ("rounds", _rounds(plan)),
            ("strategy", federation.strategy.name),
            *([("local", federation.local.name)] if federation.local else []),
            *([("codec", _codecs(federation.codec))] if federation.codec != Codecs() else []),
            *promises(federation.privacy, plan.epsilon, plan.affordable),
            ("model", f"{federation.task.model}, {size(plan.model.size)}"),
            *(
                [("at home", f"{size(plan.rest.size)} more stay on each node, and go there at most once")]
                if plan.rest
                else []
            ),
            *forecast_pairs(plan.forecast),
            ("code", f"{plan.bundle_files} of your files, {size(plan.bundle_size)} with fedctl's node part"),
            *([("left out", files(plan.left_out))] if plan.left_out else []),
            *(
                [("at the end", f"each node trains the model on for itself, {counted(tuned.epochs, 'epoch')}")]
                if tuned
                else []
            ),
            *(("environment", line) for line in _environments(plan)),
        ],
        title=f"{federation.name}: what `fedctl launch` would do",
    )
    note("nothing was touched")


def _codecs(codecs: Codecs) -> str:
    """`up: delta, topk (keep 0.1), zstd; down: none`."""

    def said(named: Named) -> str:
        options = ", ".join(f"{name} {value}" for name, value in named.options.items())
        return f"{named.name} ({options})" if options else named.name

    ways = {"up": codecs.up, "down": codecs.down}
    return "; ".join(f"{way}: {', '.join(map(said, many)) or 'none'}" for way, many in ways.items())


def _rounds(plan: "DryRun") -> str:
    schedule = plan.federation.schedule
    if schedule.mode == "synchronous":
        return f"{plan.federation.rounds}, with {plan.cohort} nodes each, of which {plan.quorum} must answer"
    at_once = f"{schedule.concurrency} nodes train" if schedule.concurrency else "all nodes train"
    return f"{plan.federation.rounds}, each of the first {plan.cohort} updates; {at_once} at a time"


def _environments(plan: "DryRun") -> Iterator[str]:
    """Which Python each kind of node would train with, and what would be installed where it is not there yet."""
    kinds: dict[str, list[str]] = {}
    for node in plan.federation.nodes:
        wanted = plan.environments.get(node.name)
        if wanted is None:
            said = "this Python"
        elif node.python:
            said = f"{node.python} as it is"
        else:
            lines = wanted.needs()["environment"]["requirements"].splitlines()
            named = ", ".join(line.strip() for line in lines if line.strip() and not line.startswith("#"))
            said = f"made there unless it is there: {named}{f', of {node.wheelhouse}' if node.wheelhouse else ''}"
        kinds.setdefault(said, []).append(node.name)
    for said, names in kinds.items():
        yield f"{', '.join(names) if len(names) <= 3 else f'{names[0]} and {len(names) - 1} more'}: {said}"


def launched(state: RunState, *, was_live: bool, as_json: bool) -> None:
    """What came of a run; a live dashboard has shown it already."""
    found = report(state, alive=False)
    if as_json:
        show_json(found.to_json())
        return
    if not was_live:
        show_summary(state if state.status != "failed" else dataclasses.replace(state, reason=None))
    if state.status == "finished":
        note(f"the model is runs/{state.run}/model.ckpt, and model.safetensors beside it")
        if found.personal:
            note(f"each node's own model is on it, as runs/{state.run}/personal/NODE.ckpt in ~/.fedctl")
    elif state.status == "held":
        note(f"`fedctl aggregate {state.run}` shows what the held round would give")
    metrics = found.metrics
    if metrics and state.metric not in metrics:
        note(f"your model logs {', '.join(sorted(metrics))} and no {state.metric}: mend `monitor: {{metric: ...}}`")
    if state.status == "finished":
        for line in _without_part(state):
            note(line)


def _without_part(state: RunState) -> Iterator[str]:
    """Who contributed to no round, by the reason."""
    contributed = {name for closed in state.history for name in closed.contributors}
    reasons: dict[str, list[str]] = {}
    for node in state.nodes.values():
        if node.name not in contributed:
            asked = [closed for closed in state.history if node.name in closed.nodes]
            made = sum(bool(closed.contributors) for closed in asked)
            passed = f"others were faster, each of the {counted(made, 'time')} that it was asked"
            if not made:
                passed = "its rounds were abandoned"
            error = node.barred or node.error
            why = "never drawn" if not asked else passed if error in (None, UNNEEDED) else error
            reasons.setdefault(why, []).append(node.name)
    for why, names in reasons.items():
        yield f"{listed(names, 3)} contributed to no round: {why}"


def detached(going: "Detached", *, as_json: bool) -> None:
    """A run that goes on without this command."""
    state = going.state
    found = report(state, alive=not state.is_over)
    if as_json:
        facts = {"run": state.run, "state": found.state, "reason": state.reason}
        show_json({**facts, "pid": going.pid, "log": str(going.log)})
    elif state.is_over:
        show_summary(dataclasses.replace(state, reason=None))
    else:
        note(f"run {state.run} is going, and needs this terminal no more")
        note(f"next: `fedctl status {state.run} --follow` watches it, `fedctl stop {state.run}` ends it")


def status(state: RunState, *, alive: bool, words: Path, as_json: bool) -> None:
    """Where a run stands; `words` is where a detached coordinator put its last ones."""
    found = report(state, alive=alive, now=datetime.now(UTC))
    if as_json:
        show_json(found.to_json())
        return
    show_status(found)
    if found.state == "interrupted":
        _point_to(words)


def followed(moments: Iterable[tuple[RunState, list[Event | Telemetry], bool]], *, words: Path) -> None:
    """The dashboard of another process's run, until that is over; Ctrl-C ends the watching alone."""
    state = RunState()
    try:
        with open_sink(watching=True) as sink:
            for state, news, _ in moments:
                for item in news:
                    if isinstance(item, Progress | Preparing):
                        sink.progress(item)
                    else:
                        sink.event(item, state)
    except KeyboardInterrupt:
        note(f"left run {state.run} as it is; `fedctl status {state.run} --follow` comes back to it")
        raise
    if not state.is_over:
        note(f"no coordinator works on this run; `fedctl launch --resume {state.run}` goes on with it")
        _point_to(words)


def _point_to(words: Path) -> None:
    if words.exists():
        note(f"what its coordinator said last: tail {os.path.relpath(words)}")


def log(pieces: Iterator[str], *, as_json: bool) -> None:
    """A node's log, as it comes; control characters other than line ends and tabs are taken out."""
    if as_json:
        show_json({"log": "".join(pieces)})
        return
    for piece in pieces:
        sys.stdout.write(printable(piece))
        sys.stdout.flush()


def ended(done: "Ended", *, as_json: bool) -> None:
    """What `stop` or `clean` did."""
    if as_json:
        show_json(_plain_value(done))
        return
    if done.run:
        note(f"run {done.run}: coordinator {done.coordinator}")
    for machine, what in done.machines.items():
        note(f"{machine}: {what}")
    if done.failed:
        note("type it again once what these say is mended")
        if done.run:
            note(f"or leave those nodes as they are: `rm -r runs/{done.run}` forgets the run here")


def aggregated(done: "AggregateReport | Committed", *, as_json: bool) -> None:
    """What was averaged, and where it went."""
    if as_json:
        show_json(_plain_value(done))
        return
    if _is_committed(done):
        note(f"round {done.round} of run {done.run} is closed: {done.strategy} of {', '.join(done.contributors)}")
        note(f"go on with `fedctl launch --resume {done.run}`")
    else:
        rows = [
            [
                one.name,
                "" if one.share is None else f"{one.share:6.1%}",
                "" if one.distance is None else f"{one.distance:.4f}",
            ]
            for one in done.contributors
        ]
        show_rows(["CONTRIBUTOR", "SHARE", "DISTANCE FROM THE RESULT"], rows)
        output = os.path.relpath(done.output)
        note(f"{done.strategy} of {len(rows)}: {output}, {done.parameters:,} parameters, {size(done.blob.size)}")


def _is_committed(done: "AggregateReport | Committed") -> "TypeIs[Committed]":
    """Views import no operations: what came of one is known by what it has."""
    return hasattr(done, "round")


def _plain_value(value: Any) -> Any:
    """A result as JSON knows it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain_value(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value
