"""What is said of peers: figures of a course, a table of them, and targets. What measures them is not tested."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MB = 10**6


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(ROOT)
    from tests.bench.peers import __main__, course, stage, telling, watch

    return SimpleNamespace(main=__main__, course=course, stage=stage, telling=telling, watch=watch)


@pytest.fixture
def seen(peers: SimpleNamespace) -> Any:
    """Three rounds, of 4, 2 and 1 seconds, in which 3 MB go to the nodes in round 2 and 1 MB comes back in round 3."""
    to_nodes = [0, 10, 10, 10, 13, 13, 13]
    from_nodes = [0, 10, 10, 10, 10, 11, 11]
    samples = [
        peers.course.Sample(
            at=at,
            to_nodes=to * MB,
            from_nodes=back * MB,
            lo=3 * (to + back) * MB,
            rss={"coordinator": 5 * number, "one": 7, "two": number},
            pss={"coordinator": 1, "one": 2} if number == 0 else {},
        )
        for number, (at, to, back) in enumerate(
            zip((0.0, 5.0, 6.0, 7.0, 8.0, 8.5, 9.0), to_nodes, from_nodes, strict=True)
        )
    ]
    course = peers.course.Course(
        began=0.5, submitted=1.0, rounds=[(2.0, 6.0), (6.0, 8.0), (8.0, 9.0)], ended=9.5, model="m.npz", updates=6
    )
    return peers.course.Seen(course=course, samples=samples, own_cpu_s=3.0)


def test_figures_come_of_a_course_and_the_looks_at_it(peers: SimpleNamespace, seen: Any):
    found = peers.course.figures(seen, cpu_s=13.0, elsewhere_s=4.5)
    assert (found["round_s"], found["first_round_s"]) == (1.5, 4.0)
    assert (found["to_round_1_s"], found["submitted_to_round_1_s"], found["whole_s"]) == (1.5, 1.0, 9.0)
    assert (found["cpu_s"], found["elsewhere_cores"], found["updates"]) == (10.0, 0.5, 6)
    assert (found["coordinator_rss"], found["node_rss"], found["all_rss"]) == (30, 7, 43)
    assert (found["coordinator_pss"], found["node_pss"], found["all_pss"]) == (1, 2, 3)


def test_bytes_a_round_are_from_the_middle_of_one_to_that_of_another(peers: SimpleNamespace, seen: Any):
    found = peers.course.figures(seen, cpu_s=0, elsewhere_s=0)
    assert found["to_nodes_bytes_a_round"] == 3 * MB
    assert found["from_nodes_bytes_a_round"] == MB
    assert found["lo_bytes_a_round"] == (3 - 1) * 4 * MB, "what the relays carried is taken off once"
    assert found["line_bytes"] == 24 * MB


def test_what_was_seen_comes_back_from_its_file(peers: SimpleNamespace, seen: Any, tmp_path: Path):
    seen.write(tmp_path / "seen.json")
    read = peers.course.Seen.read(tmp_path / "seen.json")
    assert peers.course.figures(read, cpu_s=13.0, elsewhere_s=4.5) == peers.course.figures(
        seen, cpu_s=13.0, elsewhere_s=4.5
    )


def test_the_loopback_s_bytes_are_read(peers: SimpleNamespace):
    head = "Inter-|   Receive                |  Transmit\n face |bytes    packets errs|bytes    packets errs\n"
    assert peers.watch.received(f"{head}  eth0: 17 1 0 18 1 0\n    lo: 1234 5 0 1234 5 0\n") == 1234


def test_the_machine_s_work_is_read_without_idling(peers: SimpleNamespace):
    ticks = os.sysconf("SC_CLK_TCK")
    assert peers.stage.busy_s(f"cpu  {ticks} 0 {ticks} 7000 900 0 {ticks} 0 0 0\ncpu0 1 1 1 1 1 1 1 0 0 0\n") == 3


def test_peers_stand_side_by_side_with_those_measured_before(peers: SimpleNamespace, seen: Any):
    table = peers.telling.side_by_side({"fedctl": peers.course.figures(seen, cpu_s=13.0, elsewhere_s=4.5)}).splitlines()
    assert table[0].split("  ")[-3:] == ["fedctl", "NVFLARE 2.9.0, before", "Flower 1.42.0, before"]
    assert table[1].split("  ")[0] == "a round, median from the second on"
    assert table[1].split()[-6:] == ["1.50", "s", "2.90", "s", "13.10", "s"]
    assert len({len(line) for line in table}) == 1


@pytest.mark.parametrize("is_coded", [False, True])
def test_targets_are_judged_beside_flower(peers: SimpleNamespace, seen: Any, *, is_coded: bool):
    ours = peers.course.figures(seen, cpu_s=13.0, elsewhere_s=4.5) | {"accuracy": 0.875}
    theirs = {**ours, "round_s": 15.0, "lo_bytes_a_round": 24 * MB, "accuracy": 0.88}
    rows = {row.name: row for row in peers.telling.rows("fedctl", ours, theirs, is_coded=is_coded)}
    assert rows["fedctl: Flower's round"].is_met is True
    assert rows["fedctl: Flower's lo bytes a round"].is_met is (not is_coded), "3 times is enough without codecs alone"
    assert rows["fedctl: a round"].is_met is False
    assert rows["fedctl: CPU"].is_met is True
    assert rows["fedctl: accuracy above Flower's"].is_met is True
    assert rows["fedctl: Flower's line bytes a round"].is_met is (False if is_coded else None)


def test_without_flower_fedctl_is_judged_alone(peers: SimpleNamespace, seen: Any):
    rows = peers.telling.rows("fedctl", peers.course.figures(seen, cpu_s=13.0, elsewhere_s=4.5), None, is_coded=False)
    assert [row.name for row in rows] == ["fedctl: a round", "fedctl: CPU"]


def test_codecs_have_short_names(peers: SimpleNamespace):
    assert peers.main.named(["none", "int4", "[delta, zstd]"]) == {
        "fedctl": "none",
        "fedctl, codec a": "int4",
        "fedctl, codec b": "[delta, zstd]",
    }


def test_figures_need_three_rounds(peers: SimpleNamespace, capsys: pytest.CaptureFixture[str]):
    assert peers.main.parse(["--rounds", "3", "--codec", "none"]).rounds == 3
    with pytest.raises(SystemExit):
        peers.main.parse(["--rounds", "2"])
    assert "figures need three rounds" in capsys.readouterr().err


@pytest.mark.parametrize("number", [0, 1])
def test_what_both_train_is_a_valid_federation_with_each_codec(peers: SimpleNamespace, number: int):
    from fedctl import topology
    from tests.bench.peers import ours
    from tests.bench.peers.work import network

    text = ours.fed_yaml(["a", "b"], Path("images.npz"), rounds=3)
    codec = f"codec={peers.main.CODECS[number]}"
    federation = topology.parse(text, name="fed.yaml", folder=ours.HERE / "federation", overrides=[codec])
    assert [(node.name, node.data["site"]) for node in federation.nodes] == [("a", 0), ("b", 1)]
    assert sum(each.numel() for each in network().parameters()) == 206_922
