"""What is true after every storm; each check gives the sentences that say where it is not."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedctl.journal import Journal
from tests.bed.processes import wait_until
from tests.chaos.script import COORDINATOR
from tests.chaos.storm import Place, Storm

ATTEMPTS = 3
FINISHED = 7
"""The exit code of a resume of a run that has finished: a coordinator may be killed after its last event."""


def the_run_ends_as_documented(storm: Storm, calm: Place) -> list[str]:
    ended = [code for code in storm.exits if code not in (0, FINISHED)]
    last = storm.place.events()[-1]["event"]
    return [f"exit {code}" for code in ended] + ([] if last == "RunFinished" else [f"it ended in {last}"])


def the_models_are_those_of_the_calm_run(storm: Storm, calm: Place) -> list[str]:
    names = sorted(str(path.relative_to(calm.run)) for path in calm.run.glob("rounds/*/**/*.safetensors"))
    return [name for name in [*names, "model.safetensors"] if not _is_same(storm.place.run / name, calm.run / name)]


def every_round_has_the_contributors_of_the_calm_run(storm: Storm, calm: Place) -> list[str]:
    ours, theirs = (
        {e["round"]: e["contributors"] for e in place.events() if e["event"] == "RoundAggregated"}
        for place in (storm.place, calm)
    )
    return [f"round {number}: {ours.get(number)}" for number in theirs if ours.get(number) != theirs[number]]


def every_answer_is_journalled_once(storm: Storm, calm: Place) -> list[str]:
    events = storm.place.events()
    accepted = Counter(e["task"] for e in events if e["event"] in ("UpdateReceived", "ModelEvaluated", "TaskFailed"))
    answered = Counter(
        _without_attempt(e["task"]) for e in events if e["event"] in ("UpdateReceived", "ModelEvaluated")
    )
    rounds = Counter(f"round {e['round']} {e['event']}" for e in events if e["event"].startswith("RoundAgg"))
    return [key for count in (accepted, answered, rounds) for key, times in count.items() if times > 1]


def every_task_is_begun_once_a_key(storm: Storm, calm: Place) -> list[str]:
    """The nodes' own count: a training that was begun twice under one key would make it larger than that of keys."""
    wrong = []
    for name, server in storm.bed.nodes.items():
        begun = len((server.home / "begun").read_text().splitlines())
        keys = {e["task"] for e in storm.place.events() if e["event"] == "TaskStarted" and _trains(e, name)}
        if begun > len(keys):
            wrong.append(f"{name} began {begun} trainings for {len(keys)} tasks")
    return wrong


def the_budget_of_attempts_is_kept(storm: Storm, calm: Place) -> list[str]:
    failed = [e["task"] for e in storm.place.events() if e["event"] == "TaskFailed"]
    return [key for key in failed if int(key.rpartition("/")[2][1:]) > ATTEMPTS]


def every_failure_has_a_reason(storm: Storm, calm: Place) -> list[str]:
    return [str(e) for e in storm.place.events() if e["event"] in ("TaskFailed", "NodeLost") and not e["reason"]]


def the_status_is_told_after_every_kill(storm: Storm, calm: Place) -> list[str]:
    kills = sum(blow.fault.who == COORDINATOR and blow.fault.what.startswith("kill") for blow in storm.blows)
    wrong = [f"after kill {i}: {said}" for i, said in enumerate(storm.statuses, 1) if not _is_told(said)]
    return wrong if len(storm.statuses) == kills else [*wrong, f"{len(storm.statuses)} answers for {kills} kills"]


def the_journal_is_whole(storm: Storm, calm: Place) -> list[str]:
    with Journal(storm.place.run / "events.jsonl") as journal:
        return ["its tail is torn"] if journal.was_torn else []


def what_arrived_is_what_left(storm: Storm, calm: Place) -> list[str]:
    """Whoever died, and whatever came twice: the nodes' ledgers are whole, and say what the journal says."""
    said = storm.place.fedctl("audit", storm.place.run.name, "--verify", "--json")
    nodes = json.loads(said.stdout)["nodes"]
    return [f"{one['node']}: {one['reason'] or one['differences']}" for one in nodes if one["state"] != "agrees"]


def no_process_is_left(storm: Storm, calm: Place) -> list[str]:
    """Of a run that was killed after its last event, `fedctl stop` ends the workers."""
    if FINISHED in storm.exits:
        storm.place.fedctl("stop", storm.place.run.name)
    try:
        wait_until(lambda: not left(storm), "processes are left")
    except TimeoutError:
        return [f"{name}: {pids}" for name, pids in left(storm).items()]
    return []


def no_half_written_file_is_left(storm: Storm, calm: Place) -> list[str]:
    homes = [server.fedctl_home for server in storm.bed.nodes.values()]
    return [
        str(path.relative_to(storm.place.folder.parent.parent))
        for folder in (storm.place.folder / "runs", storm.place.home, *homes)
        for path in folder.rglob("*")
        if path.name.startswith(".") or ".tmp-" in path.name or path.suffix in (".part", ".blocks", ".here")
    ]


def nodes_keep_no_update_that_has_come(storm: Storm, calm: Place) -> list[str]:
    """But for those of the last rounds, which the run's end may overtake."""
    rounds = max(e["round"] for e in storm.place.events() if e["event"] == "RoundOpened")
    return [
        path.parent.name
        for server in storm.bed.nodes.values()
        for path in server.fedctl_home.glob("runs/*/*/update.safetensors")
        if int(path.parent.name[1:5]) < rounds - 1
    ]


Invariant = Callable[[Storm, Place], list[str]]
INVARIANTS: tuple[Invariant, ...] = (
    the_run_ends_as_documented,
    the_models_are_those_of_the_calm_run,
    every_round_has_the_contributors_of_the_calm_run,
    every_answer_is_journalled_once,
    every_task_is_begun_once_a_key,
    the_budget_of_attempts_is_kept,
    every_failure_has_a_reason,
    the_status_is_told_after_every_kill,
    the_journal_is_whole,
    what_arrived_is_what_left,
    no_process_is_left,
    no_half_written_file_is_left,
    nodes_keep_no_update_that_has_come,
)


def left(storm: Storm) -> dict[str, list[int]]:
    """What still runs, by node; nodes without such a process are left out."""
    found = {name: server.started() for name, server in storm.bed.nodes.items()}
    return {name: pids for name, pids in {**found, COORDINATOR: storm.place.processes()}.items() if pids}


def _is_same(ours: Path, theirs: Path) -> bool:
    return ours.exists() and ours.read_bytes() == theirs.read_bytes()


def _without_attempt(key: str) -> str:
    return key.rstrip("0123456789")


def _trains(event: Mapping[str, Any], node: str) -> bool:
    _, name, attempt = event["task"].split("/")
    return name == node and attempt.startswith("a")


def _is_told(said: Mapping[str, Any]) -> bool:
    return said["state"] in ("interrupted", "finished")
