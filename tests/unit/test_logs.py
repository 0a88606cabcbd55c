"""What `fedctl logs` shows of a node's tasks, and when."""

import pytest

from fedctl.errors import NodeError
from fedctl.operations.runs import _fresh


class Machine:
    """A host with the logs of these tasks, by folder."""

    def __init__(self, **logs):
        self.logs = logs

    def tasks(self):
        return {"tasks": {folder.replace("_", "-"): "done" for folder in self.logs}}

    def read_log(self, key, offset):
        return self.logs[key.folder.replace("-", "_")].encode()[offset:]


def test_the_newest_is_shown_and_then_what_comes_but_nothing_older():
    machine, shown = Machine(r0001_a_a1="one\n", r0002_a_a1="", r0001_b_a1="other\n"), {}
    assert list(_fresh(machine, "a", shown)) == []
    machine.logs["r0002_a_a1"] = "two\n"
    assert list(_fresh(machine, "a", shown)) == ["==> r0002/a/a1 <==\n", "two\n"]
    assert list(_fresh(machine, "a", shown)) == []
    machine.logs |= {"r0002_a_a1": "two\nmore\n", "r0003_a_a1": "three\n"}
    assert list(_fresh(machine, "a", shown)) == ["more\n", "==> r0003/a/a1 <==\n", "three\n"]


@pytest.mark.parametrize("answer", [{}, {"tasks": 5}, {"tasks": {"x": "done"}}, {"tasks": [7]}])
def test_a_list_of_tasks_that_is_none_is_refused(answer):
    machine = Machine()
    machine.tasks = lambda: answer
    with pytest.raises(NodeError, match="list of tasks"):
        list(_fresh(machine, "a", {}))
