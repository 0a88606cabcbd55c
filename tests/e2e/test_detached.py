"""A coordinator without a terminal: it goes on when its terminal dies, and every other command finds it."""

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import COMMAND, Place


@pytest.fixture(scope="module")
def place(make_place) -> Place:
    """Its rounds take seconds, so that a run can be found under way."""
    place = make_place("blank")
    place.edit("model.py", "import torch\n", "import time\nimport torch\n")
    place.edit("model.py", "        # Made anew for every round", "        time.sleep(1)  #")
    return place


class Terminal:
    """A terminal with a shell in it, as a person has."""

    def __init__(self, place: Place) -> None:
        self._master, slave = pty.openpty()
        self.shell = subprocess.Popen(
            ["setsid", "--ctty", "sh"],
            cwd=place.folder,
            env={**place.environment, "PS1": "", "ENV": ""},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self.said = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.said:
            assert time.monotonic() < deadline, self.said
            self.said += os.read(self._master, 4096).decode(errors="replace")

    def hang_up(self) -> None:
        """What closing the window does: the kernel sends SIGHUP to what runs there."""
        os.close(self._master)
        assert self.shell.wait(timeout=20) != 0


def is_running(place: Place, run: str) -> bool:
    return place.json("status", run)["state"] == "running"


def test_a_detached_run_outlives_its_terminal(place):
    terminal = Terminal(place)
    terminal.type(" ".join([*COMMAND, "launch", "--detach", "--run", "away", "--set", "rounds=4"]) + "\n")
    terminal.wait_for("needs this terminal no more")
    terminal.wait_for("fedctl status away --follow")
    terminal.type("sleep 99\n")
    time.sleep(0.3)
    terminal.type("\x03")
    terminal.hang_up()
    assert is_running(place, "away")

    watching = place.start("status", "away", "--follow")
    assert watching.stdout
    assert "run away started" in watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    said, _ = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert "left run away as it is" in said

    held = place.fedctl("launch", "--resume", "away", "--detach", code=7)
    assert "held by process" in held.stderr
    assert "run finished" in place.fedctl("status", "away", "--follow").stdout
    assert place.json("status", "away")["round"] == 4
    log = (place.folder / "runs/away/logs/coordinator.log").read_text()
    assert "run finished" in log
    place.wait_for(lambda _: not place.processes(), "away", 20)
    assert "has finished" in place.fedctl("launch", "--resume", "away", "--detach", code=7).stderr


def test_one_that_dies_leaves_word_and_is_taken_up_by_another(place):
    started = place.json("launch", "-d", "--run", "dying", "--set", "rounds=3", "--hold")
    assert (started["run"], started["state"]) == ("dying", "running")
    assert os.getpgid(started["pid"]) == os.getsid(started["pid"]) == started["pid"]
    for number in (0, 1, 2):
        stream = str(Path(f"/proc/{started['pid']}/fd/{number}").readlink())
        assert stream.endswith(("/dev/null", "/logs/coordinator.log"))
    assert b"rounds=3" not in Path(f"/proc/{started['pid']}/cmdline").read_bytes(), "what one sets stands in no argv"
    os.kill(started["pid"], signal.SIGKILL)
    place.wait_for(lambda _: not Path(f"/proc/{started['pid']}/cwd").exists(), "dying", 20)
    said = place.fedctl("status", "dying")
    assert "interrupted" in said.stdout
    assert "tail runs/dying/logs/coordinator.log" in said.stderr

    again = place.json("launch", "--resume", "dying", "--detach")
    assert again["pid"] != started["pid"]
    assert is_running(place, "dying")
    ended = place.json("stop", "dying")
    assert ended["coordinator"] == "stopped"
    assert "run dying was stopped" in Path(again["log"]).read_text()
    place.wait_for(lambda _: not place.processes(), "dying", 20)


def test_a_log_is_followed_through_a_line_that_breaks(place):
    place.fedctl("launch", "--detach", "--run", "logged", "--set", "rounds=6")
    following = place.start("logs", "alice", "--run", "logged", "--follow")
    assert following.stdout
    first = following.stdout.readline()
    assert first.startswith("==> r000")
    [agent] = Path(f"/proc/{following.pid}/task/{following.pid}/children").read_text().split()
    os.kill(int(agent), signal.SIGKILL)
    said, _ = following.communicate(timeout=120)
    assert following.returncode == 0, said
    assert "==> r0006/alice/a1 <==" in said


@pytest.mark.parametrize("json_", [True, False])
def test_code_that_cannot_be_used_comes_back_as_the_error_that_it_is(make_place, json_):
    place = make_place("blank")
    place.edit("model.py", "import torch\n", "import nosuchthing\n")
    said = place.fedctl("launch", "--detach", *(["--json"] if json_ else []), code=3)
    error = json.loads(said.stdout)["error"] if json_ else {"message": said.stderr, "hint": said.stderr}
    assert "model.py:4: ModuleNotFoundError: No module named 'nosuchthing'" in error["message"]
    assert "requirements.txt" in error["hint"]
    assert not (place.folder / "runs").exists()
    assert place.processes() == []


def test_ctrl_c_before_it_is_going_leaves_it_going(make_place):
    place = make_place("blank")
    command = place.start("launch", "--detach", "--run", "r", "--set", "rounds=1")
    place.wait_for(bool, "r")
    command.send_signal(signal.SIGINT)
    said, _ = command.communicate(timeout=20)
    assert command.returncode == 130, said
    assert "run r goes on without this terminal" in said
    place.wait_for(lambda events: events[-1]["event"] == "RunFinished", "r")
