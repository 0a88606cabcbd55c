"""Nodes that hand in what they have done by a deadline, and nodes that are used at some times only."""

import pytest

from tests.e2e.conftest import Place

BOB_TRAINS = '"key": "r0001/bob/a1", "phase": "training"'
SLOW = "        import time; time.sleep(0.05)\n"


@pytest.fixture(scope="module")
def place(make_place) -> Place:
    place = make_place("blank")
    (place.folder.parent / "free").touch()
    command = place.folder.parent / "idle"
    command.write_text(
        f"#!/bin/sh\ntest -e {place.folder.parent}/free && exit 0\necho bob is at the keyboard\nexit 1\n"
    )
    command.chmod(0o755)
    place.edit(
        "fed.yaml", "threads: 1, data: {site: 1}", f"threads: 1, when: {{command: {command}}}, data: {{site: 1}}"
    )
    place.edit(
        "model.py", "        rows, targets = batch\n        loss", SLOW + "        rows, targets = batch\n        loss"
    )
    place.edit("model.py", "import torch\n", "import torch\nfrom fedctl.node import window\n")
    place.edit(
        "model.py", "class Net", "window.ASK_AGAIN_S = 0.5  # so that nobody has to wait for long\n\n\nclass Net"
    )
    return place


@pytest.fixture
def bobs_word(place):
    """The file that lets bob be used while it is there."""
    word = place.folder.parent / "free"
    word.touch()
    return word


def of(events, kind):
    return [event for event in events if event["event"] == kind]


def test_by_the_deadline_nodes_hand_in_what_they_have_done(place, bobs_word):
    schedule = ("--set", "schedule.deadline=20s", "--set", "schedule.partial=true", "--set", "rounds=1")
    said = place.fedctl("launch", "--run", "deadline", *schedule, "--set", "task.trainer.max_epochs=100000").stdout
    updates = of(place.events("deadline"), "UpdateReceived")
    assert [update["partial"] for update in updates] == [True, True]
    assert all(1 <= update["steps"] <= 20 / 0.05 for update in updates)
    assert all(update["line_s"] > 0 for update in updates)
    assert place.json("status", "deadline")["history"][1]["contributors"] == ["alice", "bob"]
    assert f"alice handed in {updates[0]['steps']} steps" in said or f"{updates[1]['steps']} steps" in said


def test_a_run_that_needs_a_node_waits_until_its_owner_says_yes(place, bobs_word):
    bobs_word.unlink()
    running = place.start("launch", "--run", "waits", "--set", "rounds=1", "--set", "schedule.quorum=1.0")
    place.wait_for(lambda events: len(of(events, "NodeDeclined")) >= 2, "waits")
    assert of(place.events("waits"), "NodeDeclined")[0]["reason"] == "bob is at the keyboard"
    assert not of(place.events("waits"), "RoundOpened")
    bobs_word.touch()
    said, _ = running.communicate(timeout=120)
    assert running.returncode == 0, said
    assert "bob is not to be used now: bob is at the keyboard" in said
    assert place.json("status", "waits")["history"][1]["contributors"] == ["alice", "bob"]


def test_a_training_that_its_owner_stops_is_begun_anew_later_and_costs_no_attempt(place, bobs_word):
    once = ("--set", "rounds=1", "--set", "schedule.quorum=1.0", "--set", "schedule.attempts=1")
    running = place.start("launch", "--run", "stops", *once, "--set", "task.trainer.max_epochs=40")
    metrics = place.folder / "runs/stops/metrics.jsonl"
    place.wait_for(lambda _: metrics.exists() and BOB_TRAINS in metrics.read_text(), "stops")
    bobs_word.unlink()
    place.wait_for(lambda events: of(events, "NodeDeclined"), "stops")
    bobs_word.touch()
    said, _ = running.communicate(timeout=180)
    assert running.returncode == 0, said
    events = place.events("stops")
    assert not of(events, "TaskFailed")
    trained = [update for update in of(events, "UpdateReceived") if update["task"] == "r0001/bob/a1"]
    assert [(update["partial"], update["steps"]) for update in trained] == [(False, 5 * 40)]


def test_check_says_what_a_node_answers_now(place, bobs_word):
    assert "not to be used now" not in place.fedctl("check").stderr
    bobs_word.unlink()
    said = place.fedctl("check").stderr
    assert "bob: not to be used now: bob is at the keyboard" in said
    assert "2 nodes ready, 1 of them not to be used now" in said
    place.edit("fed.yaml", "/idle}", "/gone}")
    told = place.json("check", code=4)
    (finding,) = [one for one in told["nodes"]["bob"] if one["name"] == "when"]
    assert not finding["passed"]
    assert "cannot be run" in finding["value"]
