"""When a node may be used: its hours and days by its own clock, and its owner's command."""

import time

import pytest

from fedctl.errors import Declined
from fedctl.federation import When
from fedctl.node.agent import Refused, judge, rest_until
from fedctl.node.window import Window
from fedctl.records import Task, TaskKey
from tests.unit.test_records import TASK

EVENING, MORNING, NOON = 20 * 60, 6 * 60, 12 * 60
ALWAYS = {"hours": [], "days": [], "command": []}
MINUTE, HOUR, DAY = 60, 3600, 86_400


def on(day, hour, minute=0, second=0):
    """A moment of a week in March; day 0 is its Monday."""
    return time.struct_time((2026, 3, 2 + day, hour, minute, second, day, 61 + day, 0))


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("hours", "days", "now", "rest_s"),
    [
        ([], [], on(3, 4), 0),
        ([[EVENING, MORNING]], [], on(0, 20), 0),
        ([[EVENING, MORNING]], [], on(0, 5, 59, 59), 0),
        ([[EVENING, MORNING]], [], on(0, 6), 14 * HOUR),
        ([[EVENING, MORNING]], [], on(0, 19, 59, 58), 2),
        ([[MORNING, NOON]], [], on(0, 12), 18 * HOUR),
        ([[MORNING, NOON], [EVENING, 24 * 60]], [], on(0, 13), 7 * HOUR),
        ([[EVENING, 24 * 60]], [], on(0, 23, 59, 59), 0),
        ([[0, 24 * 60]], [], on(6, 23, 59, 59), 0),
        ([], [0], on(0, 0), 0),
        ([], [0], on(1, 0), 6 * DAY),
        ([], [5, 6], on(4, 23, 59), MINUTE),
        ([[EVENING, MORNING]], [4], on(5, 3), 0),
        ([[EVENING, MORNING]], [4], on(4, 3), 17 * HOUR),
        ([[EVENING, MORNING]], [6], on(0, 3), 0),
        ([[MORNING, NOON]], [0], on(0, 13), 7 * DAY - 7 * HOUR),
    ],
)
def test_hours_and_days_say_how_long_to_rest(hours, days, now, rest_s):
    assert rest_until(hours, days, now) == pytest.approx(rest_s)


def test_outside_its_hours_a_node_says_when_they_begin():
    ahead = time.localtime(time.time() + 2 * HOUR)
    begin = ahead.tm_hour * 60 + ahead.tm_min
    verdict = judge({**ALWAYS, "hours": [[begin, (begin + 60) % 1440]]})
    assert not verdict["may"]
    assert verdict["why"] == time.strftime("outside its hours until %a %H:%M", ahead)
    assert HOUR < verdict["seconds"] <= 2 * HOUR


def test_within_its_hours_the_owners_command_decides(tmp_path):
    asked = {**ALWAYS, "command": [script(tmp_path / "idle", 'test "$1" = yes && exit 0; echo on battery; exit 1')]}
    assert judge({**asked, "command": [*asked["command"], "yes"]}) == {"may": True, "why": "", "seconds": 0.0}
    assert judge(asked) == {"may": False, "why": "on battery", "seconds": 0.0}


def test_no_shell_reads_the_command_and_it_hears_nothing(tmp_path):
    reads = script(tmp_path / "reads", 'cat; echo "$1"; exit 1')
    assert judge({**ALWAYS, "command": [reads, "$HOME; *"]})["why"] == "$HOME; *"


def test_a_command_that_says_nothing_is_named_with_its_status(tmp_path):
    silent = script(tmp_path / "silent", "exit 3")
    assert judge({**ALWAYS, "command": [silent]})["why"] == f"{silent} ended with status 3"


def test_a_command_in_the_home_is_found_there(tmp_path, monkeypatch):
    script(tmp_path / "idle", "exit 0")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert judge({**ALWAYS, "command": ["~/idle"]})["may"]


@pytest.mark.parametrize("is_alone", [True, False])
def test_a_command_that_does_not_end_is_a_no(tmp_path, monkeypatch, is_alone):
    monkeypatch.setattr("fedctl.node.agent.OWNER_S", 0.3)
    slow = script(tmp_path / "slow", "sleep 60")
    assert judge({**ALWAYS, "command": [slow]}, is_alone=is_alone)["why"] == f"{slow} took longer than 0.3 s"


def test_a_command_that_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(Refused, match="idle cannot be run: No such file"):
        judge({**ALWAYS, "command": [str(tmp_path / "idle")]})


def task(**fields):
    return Task.from_json({**TASK.to_json(), **fields})


def test_a_task_without_bounds_has_all_the_time():
    window = Window(
        Task(key=TaskKey(round=1, node="a"), seed=1, model="", model_args={}, data="", data_args={}, trainer={})
    )
    assert not window.is_over
    assert window.closed() is None


def test_the_seconds_of_a_task_begin_with_it():
    window = Window(task(seconds=0.05))
    assert not window.is_over
    time.sleep(0.06)
    assert window.is_over


def test_the_owners_command_is_asked_now_and_then(tmp_path, monkeypatch):
    said = tmp_path / "said"
    said.write_text("")
    command = script(tmp_path / "idle", f"echo asked >> {tmp_path}/log; cat {said}; test ! -s {said}")
    window = Window(task(when=When(command=(command,)).to_json()))
    assert window.closed() is None
    said.write_text("somebody is at the keyboard")
    assert window.closed() is None
    assert (tmp_path / "log").read_text().count("asked") == 1
    monkeypatch.setattr("fedctl.node.window.ASK_AGAIN_S", 0.0)
    window = Window(task(when=When(command=(command,)).to_json()))
    no = window.closed()
    assert isinstance(no, Declined)
    assert (no.message, no.seconds) == ("somebody is at the keyboard", 0.0)


def test_a_command_that_has_gone_is_a_no(tmp_path):
    no = Window(task(when=When(command=(f"{tmp_path}/idle",)).to_json())).closed()
    assert isinstance(no, Declined)
    assert "cannot be run" in no.message
