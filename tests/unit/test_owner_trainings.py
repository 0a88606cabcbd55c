"""The owner's count of trainings: each once, and those that spend of one ε never at the same time."""

import fcntl
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedctl.node.agent import Refused, Run
from fedctl.node.owner.trainings import Trainings

KEYS = [f"r{number:04d}/alice/a1" for number in range(1, 21)]
SPENT = {"noise": 1.0, "rate": 0.5, "steps": 10.0, "epsilon": 2.0, "delta": 1e-5}


@pytest.fixture
def trainings(tmp_path):
    return Trainings(tmp_path / "trainings")


@pytest.fixture
def run(tmp_path):
    return Run.claim(tmp_path, "one", "aaaa")


def begin(trainings, run, key, *, is_private=True):
    return trainings.begin("aaaa", key, run.folder(key), is_private=is_private)


def test_a_training_counts_once_however_often_and_by_whomever_it_is_begun(tmp_path, run):
    def begin_all(_):
        trainings = Trainings(tmp_path / "trainings")
        return [begin(trainings, run, key, is_private=False) for key in KEYS]

    with ThreadPoolExecutor(8) as pool:
        assert not any(why for several in pool.map(begin_all, range(8)) for why in several)
    trainings = Trainings(tmp_path / "trainings")
    assert trainings.count("aaaa", "another") == len(KEYS)
    assert trainings.count("aaaa", KEYS[0]) == len(KEYS) - 1
    assert trainings.count("bbbb", KEYS[0]) == len(KEYS)


def test_no_more_are_begun_than_the_owner_allows_however_many_ask_at_once(tmp_path, run):
    def begin_one(key):
        try:
            return Trainings(tmp_path / "trainings").begin("aaaa", key, run.folder(key), is_private=False, most=3)
        except Refused as refusal:
            return str(refusal)

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(begin_one, KEYS))
    assert said.count(None) == 3
    assert said.count("the owner of this node allows 3 trainings in all, and no more are left") == len(KEYS) - 3
    assert begin_one(KEYS[said.index(None)]) is None, "it is counted already"


def test_a_line_that_a_loss_of_power_cut_off_costs_itself_alone(trainings, run):
    begin(trainings, run, KEYS[0])
    with trainings.path.open("a") as file:
        file.write('\n{"identity": "aaaa", "ke')
    begin(trainings, run, KEYS[1])
    assert trainings.count("aaaa", "another") == 2


def test_two_that_spend_of_one_budget_do_not_run_at_once(trainings, run):
    run.accept(KEYS[0], {})
    assert begin(trainings, run, KEYS[0]) is None
    with (run.folder(KEYS[0]) / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "is at work" in begin(trainings, run, KEYS[1])
        assert begin(trainings, run, KEYS[0]) is None, "it is that one itself"
        assert begin(trainings, run, KEYS[2], is_private=False) is None
    assert begin(trainings, run, KEYS[1]) is None
    assert trainings.count("aaaa", "another") == 3


def test_what_was_spent_counts_before_it_leaves_and_after_its_folder_is_gone(trainings, run):
    run.accept(KEYS[0], {})
    begin(trainings, run, KEYS[0])
    assert trainings.spent() == []
    run.finish(KEYS[0], {"privacy": SPENT})
    assert trainings.spent() == [[1.0, 0.5, 10.0]]
    for _ in range(2):
        trainings.note("aaaa", KEYS[0], SPENT)
    (run.folder(KEYS[0]) / "result.json").unlink()
    assert trainings.spent() == [[1.0, 0.5, 10.0]]
    assert trainings.epsilon() == 2.0
    lines = [json.loads(line) for line in trainings.path.read_text().splitlines() if line]
    assert len(lines) == 2


@pytest.mark.parametrize("privacy", [{}, None, [], {"noise": "1", "rate": 1, "steps": 1}, {"noise": 1}])
def test_what_tells_of_no_mechanism_spends_nothing(trainings, run, privacy):
    run.accept(KEYS[0], {})
    begin(trainings, run, KEYS[0])
    trainings.note("aaaa", KEYS[0], privacy)
    run.finish(KEYS[0], {"privacy": privacy})
    assert trainings.spent() == []
