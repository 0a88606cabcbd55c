"""What a run will carry, against arithmetic by hand."""

from pathlib import Path

import pytest

from fedctl.federation import Federation, Node, Schedule, TaskSpec
from fedctl.forecast import Sizes, forecast
from fedctl.traffic import Traffic

MB = 10**6
RAW = Sizes(model=MB, down=MB, up=MB)
CODED = Sizes(model=MB, down=MB // 2, up=MB // 10)


def federation(*nodes, rounds=3, **more):
    task = TaskSpec(model="m.py:M", data="d.py:D")
    return Federation(name="f", folder=Path(), task=task, nodes=nodes, rounds=rounds, **more)


def apart(count, **more):
    return [Node(name=f"n{number}", host=f"h{number}", **more) for number in range(count)]


def test_each_machine_gets_every_model_and_each_node_gives_every_update():
    found = forecast(federation(*apart(2)), RAW)
    assert found.round == Traffic(sent=2 * MB, received=2 * MB)
    assert found.run == Traffic(sent=2 * 4 * MB, received=2 * 3 * MB)  # of three rounds, and the first one's before
    assert found.line_s is None
    assert [line.nodes for line in found.lines] == [("n0",), ("n1",)]


def test_nodes_of_one_machine_get_a_model_once():
    found = forecast(federation(*(Node(name=f"n{number}", host="lab") for number in range(5))), RAW)
    assert found.round == Traffic(sent=MB, received=5 * MB)
    assert len(found.lines) == 1


def test_a_machine_with_two_pythons_gets_it_twice_over_one_line():
    found = forecast(federation(Node(name="a", host="lab"), Node(name="b", host="lab", python="/opt/python")), RAW)
    assert found.round == Traffic(sent=2 * MB, received=2 * MB)
    assert len(found.lines) == 1


def test_of_a_cohort_the_updates_count_and_of_all_nodes_the_models():
    """Every node scores every model."""
    found = forecast(federation(*apart(10), schedule=Schedule(cohort=3)), RAW)
    assert found.round == Traffic(sent=10 * MB, received=3 * MB)
    assert found.run == Traffic(sent=40 * MB, received=9 * MB)


def test_the_first_model_travels_whole_and_what_follows_as_codecs_leave_it():
    found = forecast(federation(*apart(2)), CODED)
    assert found.run == Traffic(sent=2 * 2.5 * MB, received=2 * 0.3 * MB, raw_sent=8 * MB, raw_received=6 * MB)


def test_control_variates_go_beside_both():
    found = forecast(federation(*apart(1)), Sizes(model=MB, down=MB, up=MB, controls=True))
    assert found.round == Traffic(sent=2 * MB, received=2 * MB)
    assert found.run == Traffic(sent=6 * MB, received=6 * MB)  # before the first round there are none, nor after it


def test_a_comparison_sends_what_each_trained_alone_to_all():
    found = forecast(federation(*apart(2), compare=True), RAW)
    assert found.run == Traffic(sent=2 * (4 + 3) * MB, received=2 * (3 + 1) * MB)


def test_the_slowest_line_of_each_round_counts():
    nodes = [
        Node(name="fast", host="a", uplink_bps=80e6, downlink_bps=80e6),
        Node(name="slow", host="b", uplink_bps=8e6, downlink_bps=80e6),
        Node(name="nobody knows", host="c"),
    ]
    found = forecast(federation(*nodes), RAW)
    own = [line.line_s for line in found.lines]
    assert own[2] is None
    assert own[:2] == pytest.approx([4 * 0.1 + 3 * 0.1, 4 * 0.1 + 3 * 1.0])
    assert found.line_s == pytest.approx(3 * (0.1 + 1.0) + 0.1)


def test_nodes_behind_one_line_take_turns_on_it_and_the_slowest_word_counts():
    nodes = [
        Node(name="a", host="lab", uplink_bps=8e6),
        Node(name="b", host="lab", uplink_bps=4e6, bandwidth_bps=20e6),
    ]
    found = forecast(federation(*nodes, rounds=1), RAW)
    assert found.line_s == pytest.approx(2 * 8 * MB / 20e6 + 2 * 8 * MB / 4e6)


def test_bandwidth_caps_what_the_line_gives():
    capped = forecast(federation(*apart(1, bandwidth_bps=1e6, uplink_bps=100e6, downlink_bps=100e6), rounds=1), RAW)
    assert capped.line_s == 8.0 + 8.0 + 8.0


def test_a_cohort_may_be_the_slow_ones_each_time():
    nodes = apart(4, uplink_bps=8e6, downlink_bps=8e6)
    found = forecast(federation(*nodes, rounds=2, schedule=Schedule(cohort=1)), RAW)
    assert found.line_s == 2 * (1.0 + 1.0) + 1.0
    assert found.lines[0].line_s == 3 * 1.0 + 2 * 0.25 * 1.0
