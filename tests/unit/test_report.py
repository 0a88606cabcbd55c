import dataclasses
import json
import math
import subprocess
import sys

import pytest

from fedctl.events import ModelEvaluated, RoundHeld, RunFailed, TaskStarted
from fedctl.measures import average, best_round, comparisons, personalization, trajectory, worst_node
from fedctl.records import Score, TaskKey
from fedctl.report import report
from fedctl.state import RunState
from tests.unit.runs import Story, blob, finished, mid_round, preparing

KEYS = {"run", "state", "round", "rounds", "model", "metrics", "bytes", "nodes", "history", "compare"}
NODE_KEYS = {"name", "state", "round", "attempt", "metrics", "bytes", "error"}
ROUND_KEYS = {"round", "contributors", "metrics", "seconds", "bytes"}


def states(story, *, alive=True):
    return {node.name: node.state for node in report(story.state, alive=alive).nodes}


def test_the_json_has_the_keys_that_users_rely_on():
    value = report(finished().state, alive=False).to_json()
    assert set(value) >= KEYS
    assert set(value["nodes"][0]) >= NODE_KEYS
    assert set(value["history"][0]) >= ROUND_KEYS
    assert set(value["compare"][0]) == {"node", "alone", "federated", "alone_own", "federated_own"}
    assert value["model"] == {"digest": "0" * 64, "size": 1_240_000}
    assert set(value["bytes"]) == {"sent", "received", "raw_sent", "raw_received"}
    assert value["forecast"] is None


def test_the_json_of_a_run_that_has_only_begun():
    value = report(Story().state, alive=True).to_json()
    assert (value["state"], value["model"], value["metrics"], value["history"]) == ("running", None, {}, [])
    assert report(RunState(), alive=False).to_json()["state"] == "interrupted"


def test_a_number_that_is_not_finite_is_null():
    story = mid_round()
    story.evaluated(3, "alice", 0.5)
    key = TaskKey(round=4, node="alice", kind="evaluate")
    scores = {"global": Score(examples=10, metrics={"val_acc": math.nan})}
    story.tell(ModelEvaluated, task=key, scores=scores, seconds=0.1)
    value = report(story.state, alive=True).to_json()
    assert value["metrics"] == {"val_acc": None}
    json.dumps(value, allow_nan=False)


@pytest.mark.parametrize(
    ("alive", "event", "standing", "resumes"),
    [
        (True, None, "running", False),
        (False, None, "interrupted", True),
        (True, (RunFailed, {"reason": "no node is left"}), "failed", True),
        (True, (RoundHeld, {"round": 4}), "held", True),
    ],
)
def test_the_state_of_a_run(alive, event, standing, resumes):
    story = mid_round()
    if event:
        story.tell(event[0], **event[1])
    known = report(story.state, alive=alive)
    assert known.state == standing
    assert known.resume == ("fedctl launch --resume digits-20261122-023000" if resumes else None)


def test_the_states_of_nodes():
    assert states(preparing()) == {"alice": "waiting", "bob": "lost", "carol": "preparing", "dave": "preparing"}
    expected = {"alice": "done", "bob": "failed", "carol": "training", "dave": "training", "erin": "waiting"}
    assert states(mid_round()) == expected
    assert set(states(finished()).values()) == {"done"}


@pytest.mark.parametrize(
    ("kind", "state"),
    [("evaluate", "evaluating"), ("alone", "alone"), ("compare", "comparing"), ("finetune", "fine-tuning")],
)
def test_a_node_is_about_its_task(kind, state):
    story = mid_round()
    story.started(4, "erin", kind=kind)
    assert states(story)["erin"] == state


def test_a_failed_node_that_is_tried_again_trains():
    story = mid_round()
    story.started(4, "bob", attempt=2)
    bob = report(story.state, alive=True).nodes[1]
    assert (bob.state, bob.attempt, bob.error) == ("training", 2, "CUDA out of memory")


def test_a_node_shows_its_newest_scoring_over_the_metrics_of_its_training():
    alice = report(mid_round().state, alive=True).nodes[0]
    assert alice.metrics["train_loss"] == pytest.approx(0.24)
    assert alice.metrics["val_acc"] == pytest.approx(0.8169, abs=1e-4)


def test_the_history_begins_with_the_first_model():
    history = report(mid_round().state, alive=True).history
    assert [one.round for one in history] == [0, 1, 2, 3]
    assert (history[0].contributors, history[0].seconds, history[0].evaluated) == ((), 0.0, 5)
    assert history[3].contributors == ("alice", "bob", "carol", "dave", "erin")
    assert history[3].seconds == pytest.approx(12.0, abs=0.5)


def test_an_average_is_over_examples():
    scores = [Score(examples=30, metrics={"acc": 1.0}), Score(examples=10, metrics={"acc": 0.0, "loss": 2.0})]
    assert average(scores) == {"acc": 0.75, "loss": 2.0}
    assert average([Score(examples=0, metrics={"acc": 0.5}), Score(examples=0, metrics={"acc": 0.7})]) == {"acc": 0.6}
    assert average([]) == {}


def test_a_node_without_examples_does_not_spoil_the_average():
    scores = [Score(examples=10, metrics={"acc": 0.5}), Score(examples=0, metrics={"acc": math.nan})]
    assert average(scores) == {"acc": 0.5}


def test_the_average_does_not_depend_on_who_answers_first():
    values = {"alice": 0.1, "bob": 0.2, "carol": 0.3}
    curves = []
    for order in (("alice", "bob", "carol"), ("carol", "alice", "bob")):
        story = Story()
        story.ready()
        for name in order:
            story.evaluated(0, name, values[name], examples=7)
        curves.append(trajectory(story.state))
    assert curves[0] == curves[1]


@pytest.mark.parametrize(("mode", "best", "worst"), [("max", 2, "bob"), ("min", 1, "alice")])
def test_the_best_round_and_the_worst_node_follow_the_monitors_mode(mode, best, worst):
    story = Story("alice", "bob", metric="score", mode=mode)
    story.ready()
    story.built()
    story.scored = lambda _: None
    for number, value in ((1, 0.2), (2, 0.9), (3, 0.5)):
        story.round(number)
        story.evaluated(number, "alice", value + 0.05)
        story.evaluated(number, "bob", value - 0.05)
    assert best_round(story.state).round == best
    assert worst_node(story.state).node == worst


def test_a_model_that_some_nodes_have_not_scored_is_neither_best_nor_on_the_curve():
    story = mid_round()
    story.nodes = story.nodes[:5]
    for name in ("carol", "dave", "erin"):
        story.trained(4, name)
    story.aggregated(4)
    story.evaluated(4, "alice", 1.0)
    known = report(story.state, alive=True)
    assert known.metrics["val_acc"] == 1.0
    assert (known.best.round, known.history[-1].settled) == (3, False)
    assert max(trajectory(story.state)) == 3


def test_a_diverged_node_is_the_worst_and_a_diverged_round_is_never_the_best():
    story = Story("alice", "bob")
    story.ready()
    story.evaluated(0, "alice", 0.9)
    story.evaluated(0, "bob", math.nan)
    assert worst_node(story.state).node == "bob"
    assert best_round(story.state) is None


def test_a_comparison_averages_over_everyones_data_and_keeps_the_own():
    story = Story("alice", "bob", compare=True)
    story.ready()
    story.compared("alice", {"global": 0.8, "alone/alice": 0.9, "alone/bob": 0.2}, examples=300)
    story.compared("bob", {"global": 0.6, "alone/alice": 0.1, "alone/bob": 0.7}, examples=100)
    alice, bob = comparisons(story.state)
    assert alice.alone == pytest.approx({"val_acc": 0.7})
    assert alice.federated == bob.federated == pytest.approx({"val_acc": 0.75})
    assert (bob.alone_own, bob.federated_own) == ({"val_acc": 0.7}, {"val_acc": 0.6})


def test_a_node_that_was_never_scored_alone_has_no_row():
    story = Story("alice", "bob", compare=True)
    story.ready()
    story.compared("alice", {"global": 0.8, "alone/alice": 0.9})
    assert [one.node for one in comparisons(story.state)] == ["alice"]


def test_personal_models_stand_beside_the_global_one_over_the_nodes_that_have_both():
    story = Story()
    story.ready()
    story.evaluated(0, "alice", 0.9, personal=0.8, examples=300)
    story.evaluated(0, "bob", 0.5, personal=0.9, examples=100)
    story.evaluated(0, "carol", 0.1)
    found = personalization(story.state)
    assert (found.round, found.finetuned) == (0, False)
    assert found.metrics["global"]["val_acc"] == pytest.approx(0.8)
    assert found.metrics["personal"]["val_acc"] == pytest.approx(0.825)
    assert (found.worst["global"].node, found.worst["personal"].node) == ("bob", "alice")
    rows = [(one.node, one.global_["val_acc"], one.personal["val_acc"]) for one in found.nodes]
    assert rows == [("alice", 0.9, 0.8), ("bob", 0.5, 0.9)]


def test_the_json_of_personal_models():
    story = finished(personal=True)
    value = report(story.state, alive=False).to_json()
    found = value["personal"]
    keys = {"round", "finetuned", "global_is_part", "metrics", "compared", "diverged", "worst", "nodes"}
    assert set(found) == keys
    assert (found["round"], found["finetuned"], found["global_is_part"]) == (10, False, False)
    assert (found["compared"], found["diverged"]) == (["alice", "bob", "carol"], [])
    assert set(found["metrics"]) == set(found["worst"]) == {"global", "personal"}
    assert found["metrics"]["global"] == value["metrics"]
    assert found["worst"]["personal"] == {"node": "carol", "metrics": found["nodes"][2]["personal"]}
    assert set(found["nodes"][0]) == {"node", "global", "personal"}
    assert found["nodes"][0]["personal"] == value["nodes"][0]["personal"]
    assert report(finished().state, alive=False).to_json()["personal"] is None


@pytest.mark.parametrize(("mode", "everyones", "own"), [("max", "bob", "carol"), ("min", "alice", "bob")])
def test_the_worst_node_of_each_side_follows_the_monitors_mode(mode, everyones, own):
    story = Story(metric="score", mode=mode)
    story.ready()
    for name, value, personal in (("alice", 0.9, 0.5), ("bob", 0.1, 0.8), ("carol", 0.5, 0.2)):
        story.evaluated(0, name, value, personal=personal)
    worst = personalization(story.state).worst
    assert (worst["global"].node, worst["personal"].node) == (everyones, own)


def test_personal_models_of_a_round_count_once_all_have_scored_them():
    story = mid_round(personal=True)
    before = personalization(story.state)
    assert before.round == 3
    for name in ("bob", "carol", "dave", "erin"):
        story.trained(4, name)
    story.aggregated(4)
    story.evaluated(4, "alice", 0.9, personal=0.99)
    assert personalization(story.state) == before
    assert report(story.state, alive=True).nodes[0].personal["val_acc"] == 0.99
    for name in ("bob", "carol", "dave", "erin"):
        story.evaluated(4, name, 0.9, personal=0.95)
    assert personalization(story.state).round == 4


def test_before_any_round_is_scored_by_all_its_personal_models_are_shown_as_they_come():
    story = Story()
    story.ready()
    story.evaluated(0, "bob", 0.5, personal=0.6)
    assert [one.node for one in personalization(story.state).nodes] == ["bob"]


def test_fine_tuned_models_take_the_place_of_those_that_were_kept():
    story = finished("alice", "bob", "carol", personal=True, compare=False)
    story.finetuned("alice", 0.9, 0.97)
    assert not personalization(story.state).finetuned, "two are still at it"
    story.finetuned("bob", 0.8, 0.96)
    story.failed(10, "carol", kind="finetune")
    found = personalization(story.state)
    assert (found.round, found.finetuned) == (10, True)
    assert [(one.node, one.personal) for one in found.nodes] == [
        ("alice", {"val_acc": 0.97}),
        ("bob", {"val_acc": 0.96}),
    ]
    assert states(story, alive=False) == {"alice": "done", "bob": "done", "carol": "failed"}
    kept, tuned = (report(story.state, alive=False).nodes[place].personal["val_acc"] for place in (2, 0))
    assert (kept, tuned) == (pytest.approx(0.9528, abs=1e-4), 0.97)


def test_a_node_that_has_fine_tuned_waits_for_the_comparison():
    story = finished(personal=True, compare=True)
    story.state = dataclasses.replace(story.state, status="running", compared={}, alone={})
    story.finetuned("alice", 0.9, 0.97)
    assert states(story)["alice"] == "waiting"


def test_a_personal_model_that_has_diverged_is_the_worst_and_spoils_no_mean():
    story = Story("alice", "bob", "carol")
    story.ready()
    story.evaluated(0, "alice", 0.9, personal=math.nan)
    story.evaluated(0, "bob", 0.8, personal=0.7)
    story.evaluated(0, "carol", math.nan, personal=0.9)
    value = report(story.state, alive=True).to_json()["personal"]
    assert (value["compared"], value["diverged"]) == (["bob"], ["alice"])
    assert [value["metrics"][label]["val_acc"] for label in ("global", "personal")] == [0.8, 0.7]
    assert value["metrics"]["global"]["val_loss"] == 0.4
    assert value["worst"]["personal"] == {"node": "alice", "metrics": {"val_acc": None, "val_loss": 0.4}}
    assert value["worst"]["global"]["node"] == "carol"
    json.dumps(value, allow_nan=False)


def test_where_all_personal_models_have_diverged_their_mean_is_null():
    story = Story("alice", "bob")
    story.ready()
    for name in story.nodes:
        story.evaluated(0, name, 0.9, personal=math.nan)
    value = report(story.state, alive=True).to_json()["personal"]
    assert [value["metrics"][label]["val_acc"] for label in ("global", "personal")] == [0.9, None]
    assert value["diverged"] == ["alice", "bob"]


def test_each_metric_is_compared_on_the_nodes_whose_two_models_both_have_it():
    story = Story("alice", "bob", "carol")
    story.ready()
    for name, everyones, own in (
        ("alice", {"val_acc": 0.8, "f1": 0.2}, {"val_acc": 0.9, "f1": 0.4}),
        ("bob", {"val_acc": 0.1, "f1": 0.6}, {"f1": 0.7}),
        ("carol", {"val_acc": 0.6}, {"val_acc": 0.5, "f1": 0.1}),
    ):
        scores = {"global": Score(examples=10, metrics=everyones), "personal": Score(examples=10, metrics=own)}
        key = TaskKey(round=0, node=name, kind="evaluate")
        story.tell(ModelEvaluated, task=key, scores=scores, seconds=0.1)
    found = personalization(story.state)
    assert found.metrics["global"] == pytest.approx({"val_acc": 0.7, "f1": 0.4})
    assert found.metrics["personal"] == pytest.approx({"val_acc": 0.7, "f1": 0.55})
    assert found.compared == ("alice", "carol")
    assert (found.worst["global"].node, found.worst["personal"].node) == ("carol", "carol")
    assert len(found.nodes) == 3


def test_of_one_node_that_can_be_compared_none_is_worst():
    story = Story("alice", "bob")
    story.ready()
    story.evaluated(0, "alice", 0.9, personal=0.95)
    story.evaluated(0, "bob", 0.5)
    assert personalization(story.state).worst == {"global": None, "personal": None}


@pytest.mark.parametrize(
    ("shares_all", "rounds", "is_part"), [(False, True, True), (False, False, False), (True, True, False)]
)
def test_a_global_model_is_a_part_where_nodes_have_trained_what_stays_at_home(shares_all, rounds, is_part):
    story = finished(personal=rounds, finetune=True)
    story.state = dataclasses.replace(story.state, rest=None if shares_all else blob("e"))
    found = personalization(story.state)
    assert (found.finetuned, found.global_is_part) == (True, is_part)


def test_without_the_monitored_metric_nobody_is_worst():
    story = Story("alice", "bob", metric="val_acc")
    story.ready()
    story.metric = "score"
    story.evaluated(0, "alice", 0.9, personal=0.8)
    assert report(story.state, alive=True).to_json()["personal"]["worst"] == {"global": None, "personal": None}


def test_a_task_of_the_coordinator_is_no_nodes():
    story = Story()
    story.tell(TaskStarted, task=TaskKey(round=0, node="coordinator", kind="initialize"))
    assert set(states(story).values()) == {"preparing"}


def test_neither_the_report_nor_the_way_to_json_loads_rich():
    code = "import sys, fedctl.report, fedctl.views.show, fedctl.views.lines; assert 'rich' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
