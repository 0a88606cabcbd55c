"""Rounds that take late updates, with real training: one node is slow, and the coordinator is killed on the way."""

import json
from collections import Counter

from fedctl.operations.aggregate import Request, aggregate
from tests.bench.digits import SLOWED
from tests.e2e.conftest import Place

ROUNDS = 5
NODES = ("alice", "bob", "carol", "dave")


def federation() -> str:
    """dave sleeps at every batch, so long that models are made without him; JSON is YAML, too."""
    return json.dumps(
        {
            "name": "late",
            "rounds": ROUNDS,
            "task": {
                "model": "model.py:DigitsNet",
                "data": "slowed.py:Slowed",
                "data_args": {"sites": 40, "alpha": 100, "batch_s": 0.1},
                "monitor": {"metric": "val_acc", "mode": "max"},
            },
            "schedule": {"mode": "buffered", "buffer": 2},
            "defaults": {"accelerator": "cpu", "threads": 1, "slots": 4},
            "nodes": [
                {"name": name, "data": {"site": site, **({"batch_s": 2.0} if name == "dave" else {})}}
                for site, name in enumerate(NODES)
            ],
        }
    )


def count(events, name: str) -> int:
    return sum(event["event"] == name for event in events)


def test_killed_on_the_way_it_goes_on_where_its_nodes_are(make_place):
    place: Place = make_place("digits")
    (place.folder / "slowed.py").write_text(SLOWED)
    (place.folder / "fed.yaml").write_text(federation())
    killed = place.start("launch", "--run", "late")
    place.wait_for(lambda events: count(events, "RoundAggregated") >= 2, "late")
    killed.kill()
    killed.communicate()
    place.fedctl("launch", "--resume", "late")

    told = place.json("status", "late")
    assert told["state"] == "finished"
    late = [row["staleness"] for row in told["history"] if row["staleness"]]
    assert len(late) == ROUNDS
    assert all(len(each) == 2 for each in late)
    assert max(tau for each in late for tau in each.values()) >= 1
    events = place.events("late")
    answers = Counter(event["task"] for event in events if event["event"] == "UpdateReceived")
    assert max(answers.values()) == 1
    begun = {event["task"] for event in events if event["event"] == "TaskStarted" and "/dave/a" in event["task"]}
    assert len(begun) <= 3, "dave goes on with what he has begun, also over the kill"
    for number in range(1, ROUNDS + 1):
        made = aggregate(Request(sources=("late",), folder=place.folder, round=number))
        assert made.output.read_bytes() == (made.output.parent / "model.safetensors").read_bytes()
