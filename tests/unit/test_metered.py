"""What nodes tell of their noise: within bounds that an accountant has an answer to, and as it was asked for."""

import json
from dataclasses import replace

import pytest
from opacus.accountants import RDPAccountant

from fedctl.claims import check_noise
from fedctl.dp.accounting import epsilon
from fedctl.errors import ConfigError, ModelError
from fedctl.node.bounds import Bounds
from fedctl.node.trainers import budget
from fedctl.privacy import DifferentialPrivacy, Privacy, SecureAggregation
from fedctl.records import Result, Task, TaskKey

KEY = TaskKey(round=1, node="alice", kind="train", attempt=1)
TOLD = {"noise": 1.0, "rate": 0.5, "steps": 20, "epsilon": 1.0, "delta": 1e-5}
LOCAL = DifferentialPrivacy(mode="local", noise=1.0, clip=1.0)
DISTRIBUTED = replace(LOCAL, mode="distributed")


def task(dp: DifferentialPrivacy) -> Task:
    secure = SecureAggregation() if dp.mode == "distributed" else None
    privacy = Privacy(differential_privacy=dp, secure_aggregation=secure).to_json()
    return Task(key=KEY, seed=1, model="", model_args={}, data="", data_args={}, trainer={}, privacy=privacy)


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise": -1.0},
        {"noise": 1e-160},
        {"rate": 2.0},
        {"rate": 0.0},
        {"steps": 1.5},
        {"steps": 1e12},
        {"epsilon": -1.0},
        {"delta": 0.0},
        {"delta": 2.0},
    ],
)
def test_what_no_training_has_is_refused_where_it_comes_in(wrong):
    said = Result(key=KEY, privacy=TOLD).to_json()
    assert Result.from_json(json.loads(json.dumps(said))).privacy == TOLD
    with pytest.raises(ValueError, match="privacy: no training has"):
        Result.from_json({**said, "privacy": {**TOLD, **wrong}})


def test_gradients_have_the_noise_that_was_asked_for():
    check_noise(Result(key=KEY, privacy=TOLD), task(LOCAL))
    check_noise(Result(key=KEY), task(replace(LOCAL, mode="central")))
    for other in ({}, {**TOLD, "noise": 0.5}, {**TOLD, "delta": 1e-3}):
        with pytest.raises(ModelError, match="does not tell of a noise of 1 at delta 1e-05"):
            check_noise(Result(key=KEY, privacy=other), task(LOCAL))


def test_distributed_noise_counts_against_the_owners_budget():
    two = epsilon([(1.0, 1.0, 2)], 1e-5, is_discrete=True)
    bounds = Bounds(epsilon=two, delta=1e-5, spent=((1.0, 1.0, 1),))
    told = budget.noise_of_update(task(DISTRIBUTED), bounds)
    assert told == {
        "noise": 1.0,
        "rate": 1.0,
        "steps": 1,
        "epsilon": epsilon([(1.0, 1.0, 1)], 1e-5, is_discrete=True),
        "delta": 1e-5,
    }
    with pytest.raises(ConfigError, match="the node's owner allows"):
        budget.noise_of_update(task(DISTRIBUTED), replace(bounds, spent=((1.0, 1.0, 2),)))
    assert budget.noise_of_update(task(LOCAL), bounds) == {}


@pytest.mark.parametrize("history", [[(2.0, 1.0, 37)], [(1.0, 0.1, 300)], [(0.3, 1.0, 5), (4.0, 0.5, 100)]])
def test_renyis_bound_is_opacus_own(history):
    theirs = RDPAccountant()
    theirs.history = history
    assert epsilon(history, 1e-5, is_discrete=True) == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-9)
