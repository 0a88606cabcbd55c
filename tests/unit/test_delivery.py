"""What is sent of a model to a machine that may have the one before, and how often it is asked what it has."""

import pytest

from fedctl import transfer
from fedctl.delivery import Delivery
from fedctl.records import Blob, Task, TaskKey

BEFORE, MODEL, DIFFERENCE = (
    Blob(digest=letter * 64, size=size) for letter, size in (("a", 900), ("b", 900), ("c", 90))
)


class Machine:
    """Stands for the line and for the agent behind it."""

    def __init__(self, *blobs):
        self.has, self.asked = {blob.digest for blob in blobs}, 0


@pytest.fixture(autouse=True)
def _sent(monkeypatch):
    def are_whole(machine, digests):
        machine.asked += 1
        return machine.has & set(digests)

    def put(machine, blob, _):
        sent = 0 if blob.digest in machine.has else blob.size
        machine.has.add(blob.digest)
        return sent

    monkeypatch.setattr(transfer, "are_whole", are_whole)
    monkeypatch.setattr(transfer, "put", put)


def task(node):
    return Task(
        key=TaskKey(round=2, node=node),
        seed=0,
        model="model.py:Net",
        model_args={},
        data="data.py:Data",
        data_args={},
        trainer={},
        models={"base": MODEL, "difference": DIFFERENCE},
        previous=BEFORE,
    )


def deliver(delivery, machine, nodes=3):
    return [delivery.models(machine, task(f"node{n}"), {"base": None, "difference": None}).sent for n in range(nodes)]


def test_a_machine_that_has_the_model_before_is_sent_the_difference_once():
    machine = Machine(BEFORE)
    assert deliver(Delivery(), machine) == [90, 0, 0]
    assert machine.asked == 1


def test_any_other_is_sent_the_model_once_and_asked_once_what_it_has():
    machine = Machine()
    assert deliver(Delivery(), machine) == [900, 0, 0]
    assert machine.asked == 1


def test_one_that_has_the_model_already_is_sent_nothing_and_asked_once():
    machine = Machine(BEFORE, MODEL)
    assert deliver(Delivery(), machine) == [0, 0, 0]
    assert machine.asked == 1


def test_one_that_cannot_make_it_is_sent_the_model_and_again_once_that_has_gone():
    machine, delivery = Machine(BEFORE), Delivery()
    assert deliver(delivery, machine, nodes=1) == [90]
    delivery.missed(machine, {MODEL.digest})
    assert deliver(delivery, machine) == [900, 0, 0]
    machine.has.remove(MODEL.digest)
    delivery.missed(machine, {MODEL.digest})
    assert deliver(delivery, machine) == [900, 0, 0]
