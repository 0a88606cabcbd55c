"""Training that waits for the test on a node, so that a test meets a task in its middle, each time."""

from tests.bed.processes import wait_until
from tests.bed.server import Server
from tests.ssh.conftest import SshPlace

WAITING = """\
    def on_train_start(self) -> None:
        import os
        import time
        from pathlib import Path

        home = Path(os.environ["FEDCTL_HOME"]).parent
        with (home / "begun").open("a") as file:
            file.write("begun\\n")
        number = len((home / "begun").read_text().splitlines())
        print("training number", number, flush=True)
        while (home / "gate").exists() and int((home / "gate").read_text() or 0) < number:
            time.sleep(0.02)

"""


def make_wait(place: SshPlace) -> None:
    """Have the model of a folder from the template `blank` count its trainings and wait at its node's gate."""
    place.edit("model.py", "    def training_step", WAITING + "    def training_step")


class Gate:
    """A node's gate: its trainings wait from their first step on until they are let through; shut in the beginning."""

    def __init__(self, server: Server) -> None:
        self._home = server.home
        self.open(0)

    def begun(self) -> int:
        """How many trainings began on the node, in all its tasks and runs."""
        path = self._home / "begun"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def await_training(self, number: int) -> None:
        """Wait until the training of that number, from 1, stands at the gate."""
        wait_until(lambda: self.begun() == number, f"training {number} does not begin", 60)

    def open(self, number: int) -> None:
        """Let the trainings up to that number through."""
        (self._home / "gate").write_text(str(number))
